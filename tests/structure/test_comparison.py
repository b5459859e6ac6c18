"""Comparison of a sliced model with a masked one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


class Rounding(nn.Module):
    """A product in single precision, whose rounding depends on how many numbers it sums."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(6, 64), nn.Linear(64, 3), shift

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu().float()
        return F.linear(h, self.b.weight.float()).to(x.dtype) + self.shift * h.shape[1]


def test_sums_that_a_forward_rounds_are_compared_without_their_rounding() -> None:
    torch.manual_seed(0)
    model, x = Rounding(), torch.randn(20, 6)
    (group,) = hp.find_groups(model, x, compare=True)
    assert group.num_units == 64
    result = hp.prune(model, x, [x], budget=hp.Budget(units=0.5), method="magnitude", compensate=False)
    assert len(result.plan.removed[group.name]) == 32


def test_differences_as_small_as_a_rounding_are_found() -> None:
    torch.manual_seed(0)
    model, x = Rounding(shift=1e-7), torch.randn(20, 6)
    with pytest.raises(hp.errors.UnsupportedModelError, match="depends on the number"):
        hp.find_groups(model, x, compare=True)
