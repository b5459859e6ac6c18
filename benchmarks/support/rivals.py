"""Other tools' structural pruning, each as its own documentation uses it: half of the channels by magnitude."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from torch import nn


def torch_pruning(model: nn.Module, example: Any) -> nn.Module:
    """Prune by Torch-Pruning 1.6.1: every group by half, but for the last layer, which gives the classes."""
    peer = importlib.import_module("torch_pruning")
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    pruner = peer.pruner.MagnitudePruner(
        model, example, importance=peer.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[last]
    )
    pruner.step()
    return model


def kirigami(model: nn.Module, example: Any) -> nn.Module:
    """Prune by torch-kirigami 0.2.1: half of the channels of all groups it discovers."""
    graphs, pruning = importlib.import_module("torch_kirigami"), importlib.import_module("torch_kirigami.pruning")
    graph = graphs.DependencyGraph.build(model, **_arguments(example))
    pruner = pruning.Pruner(model, graph=graph)
    chosen = pruning.Greedy(pruning.GroupMagnitude(p=2))
    return pruner.prune(pruner.discover_candidates(), budget=pruning.ChannelRatio(0.5), strategy=chosen)[0]


def _arguments(example: Any) -> dict[str, Any]:
    return {"kwargs": example} if isinstance(example, dict) else {"args": (example,)}


def refuses(error: Exception) -> bool:
    """Return whether an error is torch-kirigami's own, which names what it does not do; Torch-Pruning has none."""
    return type(error).__module__.startswith("torch_kirigami.")


RIVALS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {"torch_pruning": torch_pruning, "torch_kirigami": kirigami}
INSTALLED = {name: prune for name, prune in RIVALS.items() if importlib.util.find_spec(name)}
