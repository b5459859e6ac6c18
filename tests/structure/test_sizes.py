"""Widths that the source code holds: groups are frozen by name, and the rest of the model is pruned."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.trial import Trial


class Written(nn.Module):
    """Two layers with a function of the source code between them."""

    def __init__(self, written, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 6, 3, padding=1)
        self.head, self.written = nn.Linear(6, 3), written

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.written(F.relu(self.a(x))))).mean((2, 3)))


def shuffled(x: Tensor) -> Tensor:
    return x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(-1, 8, *x.shape[2:])


TABLE = torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1)


def in_pairs(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)


WRITTEN = {
    "square root of the width": (lambda x: x / math.sqrt(x.shape[1]), 8),
    "sum over the width": (lambda x: x - x.sum(1, keepdim=True) / x.shape[1], 8),
    "parts of a fixed size, reversed": (lambda x: torch.cat(x.split(4, 1)[::-1], 1), 8),
    "halves by position": (lambda x: x[:, :4] + x[:, 4:], 4),
    "repeated": (lambda x: x.repeat(1, 2, 1, 1), 16),
    "expanded": (lambda x: x.unsqueeze(1).expand(-1, 2, 8, -1, -1).flatten(1, 2), 16),
    "a constant in two places": (lambda x: (x * TABLE).relu() + TABLE, 8),
    "rolled": (lambda x: x.roll(3, 1), 8),
    "shuffled": (shuffled, 8),
    "shuffled in pairs": (in_pairs, 8),
    "a view of 64 numbers": (lambda x: x.reshape(-1, 64).relu().view(-1, 8, 6, 6), 8),
    "positions as a factor": (lambda x: x * torch.arange(1.0, 1.0 + x.shape[1]).view(1, -1, 1, 1), 8),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_width_never_ends_the_prune(name: str) -> None:
    torch.manual_seed(0)
    written, width = WRITTEN[name]
    model, x = Written(written, width).double().eval(), torch.randn(2, 3, 6, 6).double()
    if name == "a view of 64 numbers":
        x = torch.randn(2, 3, 6, 6).double().repeat(8, 1, 1, 1)
    groups = hp.find_groups(model, x, compare=True)
    assert groups[-1].name == "b"
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
        plan = hp.make_plan(model, groups, saliency, hp.Budget(units=0.5), example_inputs=x)
        hp.apply_plan(model, plan, example_inputs=x)


def test_what_disagrees_is_frozen_by_name_with_the_reason() -> None:
    model, x = Written(lambda x: x / math.sqrt(x.shape[1])).eval(), torch.zeros(1, 3, 6, 6)
    groups = hp.find_groups(model, x, compare=True)
    assert [group.name for group in groups] == ["b"]
    (reason,) = {item.reason for item in groups.frozen if item.param == "a.weight" and item.dim == 0}
    assert reason.startswith("the forward depends on the number or the places of its channels (without some units")


class Coupled(nn.Module):
    """Two widths that must be equal, tied by the source code alone: either may go, not both by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.left(a).relu() * a.shape[1] / b.shape[1] + self.right(b)


def test_groups_that_agree_only_together_are_not_left_together() -> None:
    torch.manual_seed(0)
    model, x = Coupled().eval(), torch.randn(2, 4)
    groups = hp.find_groups(model, x, compare=True)
    for group in groups:
        saliency = {each.name: torch.arange(8.0) + 100 * (each is not group) for each in groups}
        budget = hp.Budget(units=8 * len(groups) - 3)
        hp.apply_plan(model, hp.make_plan(model, groups, saliency, budget, example_inputs=x), example_inputs=x)


def test_a_model_of_agreeing_groups_costs_two_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Watched(Written):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.is_meta)
            return super().forward(x)

    model, x = Watched(lambda x: x).eval(), torch.randn(2, 3, 6, 6)
    (groups,) = (hp.find_groups(model, x, compare=True),)
    calls.clear()
    assert not Trial(model, x).disagreement(groups)
    assert calls == [False, False]


def test_chance_and_missing_numbers_freeze_nothing() -> None:
    class Noisy(Written):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5, training=True)) + torch.randn(3)

    noisy = Noisy(lambda x: F.dropout(x, 0.5, training=True)).eval()
    assert len(hp.find_groups(noisy, torch.zeros(1, 3, 6, 6), compare=True)) == 2
    logarithm = Written(lambda x: x).eval()
    logarithm.register_forward_pre_hook(lambda _, inputs: (inputs[0].log(),))
    assert len(hp.find_groups(logarithm, -torch.ones(1, 3, 6, 6), compare=True)) == 2
    nan = Written(lambda x: x * math.nan).eval()
    assert len(hp.find_groups(nan, torch.ones(1, 3, 6, 6), compare=True)) == 2
