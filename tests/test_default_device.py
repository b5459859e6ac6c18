"""A default device of the user's: what the library keeps stays on the CPU, and the model's forward sees the default."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.training.config import FinetuneConfig
from tests.provoking import BATCHES, HALF, IMAGES, Net, X, Y, images


@pytest.fixture(autouse=True)
def _meta() -> Iterator[None]:
    """Let every tensor without a device of its own be made without values."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def on_cpu() -> Net:
    with torch.device("cpu"):
        return Net()


SEEN: set[str] = set()


class Seeing(nn.Module):
    """Ask for the default device in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = on_cpu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.add(torch.get_default_device().type)
        return self.net(x)


@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("method", ["magnitude", "random", "joint", "hap", "sosp-h", "sosp-i", "taylor", "nvit"])
def test_prune_works_by_every_method(method: str, compensate: bool) -> None:
    result = hp.prune(on_cpu(), X, BATCHES, budget=HALF, method=method, compensate=compensate)
    assert result.model.a.weight.shape == (4, 4)
    assert result.model(X).device.type == "cpu"


def test_pruning_neither_needs_labels_nor_only_linear_layers() -> None:
    assert hp.prune(on_cpu(), X, [X], budget=HALF).model.a.weight.shape == (4, 4)
    with torch.device("cpu"):
        net = images(nn.BatchNorm2d(8))
    result = hp.prune(net, IMAGES, [(IMAGES, Y[:8])], budget=hp.Budget(macs=0.6), implant=0.3)
    assert result.model(IMAGES).device.type == "cpu"


def test_the_forward_sees_the_default_device() -> None:
    net = Seeing().eval()
    hp.prune(net, X, BATCHES, budget=HALF)
    assert list(SEEN) == ["meta"]


def test_what_follows_pruning_works(tmp_path: Path) -> None:
    net = on_cpu()
    result = hp.prune(net, X, BATCHES, budget=HALF)
    assert hp.cost(hp.apply_plan(net, result.plan), X).macs < hp.cost(net, X).macs
    tuned = hp.finetune(result.model, BATCHES, BATCHES, config=FinetuneConfig(epochs=1, lr=0.01))
    assert hp.evaluate(tuned.model, BATCHES).loss > 0
    hp.save(result.model, result.plan, tmp_path)
    assert torch.equal(hp.load(tmp_path, on_cpu)(X), result.model(X))
    assert hp.widen(net, X, {"a": 9}).model.a.weight.shape == (9, 4)
    assert hp.find_bottlenecks(net, X, BATCHES)
