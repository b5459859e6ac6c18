"""Borrow a model and give it back as it was: mode, `requires_grad`, `.grad` and random state.

A graph that `torch.export` captured refuses `train()` and `eval()`: its mode is an argument of its operators. Here it
is switched like that of any other model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

# Operators that hold the mode, and the position of that argument.
_MODE_ARGUMENT = {
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.alpha_dropout.default: 2,
    torch.ops.aten.feature_alpha_dropout.default: 2,
    torch.ops.aten.batch_norm.default: 5,
}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; restore each module's own flag on exit."""
    modes = [(module, module.training) for module in model.modules()]
    arguments = {node: node.args for node in _mode_nodes(model)}
    set_training(model, False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        _set_arguments(model, arguments)


def set_training(model: nn.Module, training: bool) -> None:
    """Switch between training and evaluation mode, the dropout and BatchNorm of captured graphs included."""
    try:
        model.train(training)
    except NotImplementedError:  # what a captured graph answers
        for module in model.modules():
            module.training = training
    switch_graphs(model, training)


def switch_graphs(model: nn.Module, training: bool) -> None:
    """Set the mode of the operators in captured graphs; flags of modules stay."""
    arguments = {}
    for node in _mode_nodes(model):
        position = _MODE_ARGUMENT[node.target]  # type: ignore[index]
        arguments[node] = (*node.args[:position], training, *node.args[position + 1 :])
    _set_arguments(model, arguments)


def _mode_nodes(model: nn.Module) -> Iterator[Node]:
    for module in model.modules():
        if isinstance(module, GraphModule):
            yield from (node for node in module.graph.nodes if node.target in _MODE_ARGUMENT)


def _set_arguments(model: nn.Module, arguments: Mapping[Node, tuple[Any, ...]]) -> None:
    changed = {node.graph for node, args in arguments.items() if node.args != args}
    for node, args in arguments.items():
        node.args = args
    for module in model.modules():
        if isinstance(module, GraphModule) and module.graph in changed:
            module.recompile()


def drop_caches(model: nn.Module) -> None:
    """Enter training mode and leave it again: layers that keep tensors between evaluations (LeViT) let go of them."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, training in modes:
        module.training = training


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's CPU threads for a block; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a block; the caller's random state is restored on exit."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        # `torch.manual_seed` formats a stack trace per absent kind of device: 0.2 ms, twice in every training step.
        (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)
        yield
