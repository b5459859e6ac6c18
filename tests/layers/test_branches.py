"""Branches of residual networks, found by a recorded run."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.layers.branches import StepMode, find_branches
from hessprune.operators.maps import Arguments, LinearMap

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """`x + last(first(x))`, written in one of several variants."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.stem, self.first, self.last = (nn.Conv2d(a, b, 1) for a, b in ((3, 6), (6, 5), (5, 6)))
        self.norm, self.shortcut = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.stem(x))
        y = self.last(torch.relu(self.first(x)))
        if self.variant in {"norm", "inplace"}:
            y = self.norm(y)
        if self.variant == "inplace":
            y += x
            return torch.relu_(y)
        if self.variant == "late shortcut":
            return F.dropout(self.shortcut(x), training=self.training) + y
        if self.variant == "seen twice":
            return torch.cat([x + y, y], 1)
        if self.variant == "changed":
            return torch.relu(y) + x
        return torch.add(x, y)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("plain", "last.weight"),
        ("norm", "last.weight"),
        ("inplace", "last.weight"),
        ("late shortcut", "shortcut.weight"),
        ("seen twice", None),
        ("changed", None),
    ],
)
def test_the_layer_that_runs_last_is_the_branch(variant: str, expected: str | None) -> None:
    model = Block(variant)
    branches = find_branches(model, X)
    assert set(branches) == ({expected} - {None})
    if expected is None:
        return
    seen = others(model, branches)
    y = call_model(model.last, torch.relu(model.first(torch.relu(model.stem(X)))))
    torch.testing.assert_close(seen[expected], y if variant == "late shortcut" else torch.relu(model.stem(X)))
    scale = branches[expected].scale
    assert (scale is not None) == (variant in {"norm", "inplace"})
    if scale is not None:
        shifted = copy.deepcopy(model.norm)
        step = shifted(torch.ones(1, 6, 1, 1)) - shifted(torch.zeros(1, 6, 1, 1))
        torch.testing.assert_close(scale, step.flatten())


def others(model: nn.Module, branches: Any) -> dict[str, Tensor]:
    """Return the other summand of each branch, on all samples."""
    seen = {}

    class Watch(StepMode):
        def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
            if name in self.branches:
                seen[name] = self.take_other(name).clone()
            return super().on_layer(name, call, arguments)

    with torch.no_grad(), Watch(model, len(X), branches):
        model(X)
    return seen


class Padded(nn.Module):
    """A residual block after steps that depend on the data, as a mask does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.back, self.head = (nn.Linear(a, b) for a, b in ((4, 6), (6, 8), (8, 6), (6, 2)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.first(x).tanh().sigmoid()
        if not bool(mask.all()):  # no steps of these kinds where nothing is padded
            mask = mask.to(torch.float64).to(torch.float32).unsqueeze(-1).sigmoid()
        h = F.dropout(h.to(torch.float32), 0.1, self.training)  # both give the tensor itself
        return self.head(h + self.back(self.wide(h).relu()))


def test_steps_that_depend_on_the_data_do_not_move_a_summand() -> None:
    torch.manual_seed(0)
    model, x = Padded().eval(), torch.randn(3, 4)
    mask = torch.tensor([1.0, 1.0, 0.0])  # the first sample has no padding
    branches = find_branches(model, (x, mask))
    taken = {}

    class Taking(StepMode):
        def on_layer(self, name: str, call: object, arguments: object) -> Tensor:
            if name in self.branches:
                taken[name] = self.take_other(name)
            return super().on_layer(name, call, arguments)

    with torch.no_grad(), Taking(model, 3, branches):
        model(x, mask)
    h = model.first(x).tanh().sigmoid()
    assert list(taken) == ["back.weight"]
    assert torch.allclose(taken["back.weight"], h)
