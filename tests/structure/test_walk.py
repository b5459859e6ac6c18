"""One attribute of a module counts units once, however often the module is called or walked."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.padding import ChannelPad


class Counted(nn.Module):
    """Two layers, and a layer behind both whose attribute counts groups of channels."""

    def __init__(self, counting: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.a, self.b, self.counting = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 12, 3), counting
        self.left, self.right = nn.Linear(width, 3), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (F.relu(self.counting(layer(x))).mean((2, 3)) for layer in (self.a, self.b))
        return self.left(left) + self.right(right)


class Leftover(Counted):
    """A head that only training uses: the graphs of evaluation and of training are walked."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.counting(self.a(x))).mean((2, 3))
        return self.left(x) + self.right(x) if self.training else self.left(x)


class TwoNames(Counted):
    """One module under two names."""

    def __init__(self, counting: nn.Module) -> None:
        super().__init__(counting)
        self.other = counting

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.counting(self.a(x))), F.relu(self.other(self.b(x)))
        return self.left(left.mean((2, 3))) + self.right(right.mean((2, 3)))


class OneWeight(TwoNames):
    """Two depthwise convolutions with one weight, each with its own `groups`."""

    def __init__(self) -> None:
        super().__init__(depthwise())
        self.other = nn.Conv2d(12, 12, 3, groups=12, dilation=2)
        self.other.weight = self.counting.weight


def depthwise() -> nn.Module:
    return nn.Conv2d(12, 12, 3, groups=12)


@pytest.mark.parametrize(
    ("build", "attributes"),
    [
        (lambda: Counted(nn.GroupNorm(6, 12)), {"counting.num_groups"}),
        (lambda: Counted(nn.GroupNorm(6, 12, affine=False)), {"counting.num_groups"}),
        (lambda: Counted(depthwise()), {"counting.groups"}),
        (lambda: Counted(ChannelPad(2, 4), 18), {"counting.before", "counting.after"}),
        (lambda: Leftover(nn.GroupNorm(3, 12)), {"counting.num_groups"}),
        (lambda: Leftover(depthwise()), {"counting.groups"}),
        (lambda: TwoNames(nn.GroupNorm(6, 12, affine=False)), {"counting.num_groups"}),
        (OneWeight, {"counting.groups", "other.groups"}),
    ],
)
def test_an_attribute_counts_units_once(build, attributes: set[str]) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 3, 9, 9)
    groups = hp.find_groups(model, x)
    assert sorted(f"{item.module}.{item.attribute}" for group in groups for item in group.literals) == sorted(
        attributes
    )
    saliency = {group.name: torch.arange(float(group.num_units)) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(units=0.6), example_inputs=x)
    assert all(plan.removed[group.name] for group in groups if group.literals)
    assert hp.verify(model, hp.apply_plan(model, plan, example_inputs=x), plan, x) < 1e-12


class CountsTwoWidths(nn.Module):
    """One norm of as many groups, over 12 channels and over 6: the same groups leave both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(3, 8, 3)
        self.pad, self.left, self.right = ChannelPad(2, 4), nn.Linear(18, 3), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(self.pad(self.a(x)).mean((2, 3))) + self.right(self.pad(self.b(x)).mean((2, 3)))


def test_one_attribute_for_two_widths() -> None:
    torch.manual_seed(0)
    model, x = CountsTwoWidths().eval(), torch.randn(2, 3, 9, 9)
    groups = hp.find_groups(model, x)
    padded = next(group for group in groups if group.literals)
    assert {(piece.param, len(piece.index)) for piece in padded.slices} == {("left.weight", 6), ("right.weight", 6)}
