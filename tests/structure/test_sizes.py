"""Widths that the source code holds: groups are frozen by name, and the rest of the model is pruned."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure import trial
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


@pytest.mark.parametrize("name", WRITTEN)
def test_single_precision_finds_the_same_groups_of_a_large_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Written(*WRITTEN[name]).eval(), torch.randn(16, 3, 6, 6)
    precise = hp.find_groups(model, x, compare=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    monkeypatch.setattr(trial, "PRECISE_UP_TO", 0)
    single = hp.find_groups(model, x, compare=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [*single] == [*precise]
    assert {(item.param, item.dim) for item in single.frozen} == {(item.param, item.dim) for item in precise.frozen}


class Coupled(nn.Module):
    """Two widths that the source code compares: a unit may leave both, but not one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 8)
        self.left, self.right, self.last = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.left(a) * a.shape[1] / b.shape[1] + self.right(b) + self.last(self.c(x))


def test_groups_that_agree_only_together_stay() -> None:
    torch.manual_seed(0)
    assert [group.name for group in hp.find_groups(Coupled().eval(), torch.randn(2, 4), compare=True)] == ["c"]


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


class Asleep(nn.Module):
    """A view with as many heads as an attribute says, in front of a ReLU that is zero on every input."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.head = nn.Linear(3, 48), nn.Linear(16, 6), nn.Linear(6, 2)
        nn.init.constant_(self.proj.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(F.relu(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("compare", [False, True])
def test_a_view_that_runs_with_other_heads_gets_its_attribute_though_units_are_dead(compare: bool) -> None:
    torch.manual_seed(0)
    model, x = Asleep(4).eval(), torch.randn(2, 5, 3)
    groups = hp.find_groups(model, x, compare=compare)
    heads = next(group for group in groups if group.name == "qkv")
    assert [(item.module, item.attribute, item.counts) for item in heads.literals] == [("", "heads", (1, 1, 1, 1))]


@pytest.mark.parametrize("compare", [False, True])
def test_a_number_of_heads_in_the_source_code_is_lowered(compare: bool) -> None:
    class Written(Asleep):
        def forward(self, x: Tensor) -> Tensor:
            del self.heads
            object.__setattr__(self, "heads", 4)
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Written(4).eval(), torch.randn(2, 5, 3)
    heads, projection = hp.find_groups(model, x, compare=compare)
    assert (heads.name, heads.num_units, projection.name) == ("qkv", 4, "proj")
    assert [(item.module, item.attribute, item.counts) for item in heads.literals] == [
        ("", "view(2:3 of 3 to 2:5)[3 of 5]=4", (1,) * 4)
    ]
