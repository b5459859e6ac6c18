"""The proof by which the zoo judges every tool: it finds what was kept, passes what is right, sees what is wrong."""

import copy
import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
kept = importlib.import_module("support.kept")


class Grouped(nn.Module):
    """A residual net with a grouped and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.wide, self.back = nn.Conv2d(12, 24, 1, groups=3), nn.Conv2d(24, 12, 1)
        self.depth, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x)).relu()
        return self.head(self.depth(y + self.back(self.wide(y).relu())).mean((2, 3)))


class Normed(nn.Module):
    """An embedding of 8 numbers that a layer norm reads, and its copy without two of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = Grouped().eval(), torch.randn(2, 3, 6, 6)
    kept.mark(model)
    groups = hp.find_groups(model, x)
    values = {group.name: torch.rand(group.num_units) for group in groups}
    plan = hp.make_plan(model, groups, values, hp.Budget(macs=0.5), example_inputs=x)
    return model, hp.apply_plan(model, plan), x


def test_a_right_result_passes(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, pruned, x = pair
    assert kept.difference(model, pruned, x) < 1e-5
    zeros = sum(int((weight == 0).sum()) for weight in kept.masked(model, pruned).parameters())
    assert zeros == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())


def test_channels_in_another_order_are_wrong(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, pruned, x = pair
    swapped = copy.deepcopy(pruned)
    swapped.head.weight.data = swapped.head.weight.data.flip(1)
    assert kept.difference(model, swapped, x) > 1e-2


def test_a_changed_weight_is_wrong(pair: tuple[nn.Module, nn.Module, Tensor]) -> None:
    model, pruned, x = pair
    pruned.back.weight.data.mul_(1.5)
    with pytest.raises(kept.UnknownNumbersError, match="another value"):
        kept.difference(model, pruned, x)


def test_a_layer_norm_of_kept_channels_counts_as_it_is_meant() -> None:
    torch.manual_seed(0)
    model, pruned, x = Normed(8), Normed(6), torch.randn(5, 4)
    kept.mark(model)
    rows = torch.tensor([0, 2, 3, 5, 6, 7])
    for name, weight in model.named_parameters():
        axis = {"head.weight": 1, "head.bias": None}.get(name, 0)
        pruned.get_parameter(name).data = (weight if axis is None else weight.index_select(axis, rows)).detach().clone()
    assert kept.difference(model, pruned, x) < 1e-5
    pruned.norm.eps = 1.0
    assert kept.difference(model, pruned, x) > 1e-2
