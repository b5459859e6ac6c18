"""Layers that the example does not reach are named, where pruning can make them fail; others are not."""

import logging

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from tests.provoking import HALF, Net, X


class Branching(Net):
    """A second output that the caller may ask for."""

    def __init__(self, inputs: int = 8) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 3)

    def forward(self, x: Tensor, embed: bool = False) -> Tensor:
        return self.proj(torch.relu(self.a(x))) if embed else super().forward(x)


class Auxiliary(Branching):
    """A second output in training mode."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + (super().forward(x, embed=True).sum() if self.training else 0)


class TiedBranch(Branching):
    """The unused layer has the weights of a used one."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 2)
        self.proj.weight, self.proj.bias = self.f.weight, self.f.bias


class Empty(Net):
    """A parameter without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, 8))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hessprune.structure.find"]


def test_a_layer_that_the_example_does_not_reach_is_named(caplog: pytest.LogCaptureFixture) -> None:
    result = hp.prune(Branching(), X, [X], budget=HALF, method="magnitude", compensate=False)
    (message,) = warned(caplog)
    assert "keep their width: proj. Other inputs may fail" in message
    assert "hp.Ranking(ignore=…)" in message
    with pytest.raises(RuntimeError):
        result.model(X, embed=True)
    groups = hp.find_groups(Branching(), X)
    assert groups.unreached == ("proj",)
    assert str(groups).splitlines()[-1] == "not reached by the example inputs: proj"


@pytest.mark.parametrize("model", [Branching(5), Auxiliary(), TiedBranch(), Empty(), Net()])
def test_other_layers_are_not_named(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    assert hp.find_groups(model, X).unreached == ()
    assert not warned(caplog)


def test_the_remedies_hold(caplog: pytest.LogCaptureFixture) -> None:
    class Wider(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.g = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, embed: bool = False) -> Tensor:
            return self.g(self.b(x)) + super().forward(x) if not embed else super().forward(x, embed)

    model = Wider()
    ranking = hp.Ranking(ignore=("a",))
    result = hp.prune(model, X, [X], budget=hp.Budget(units=0.8), method="magnitude", compensate=False, ranking=ranking)
    assert result.model(X, embed=True).shape == (24, 3)
    hp.find_groups(model, X, ignore=("proj",))  # the caller knows
    hp.find_groups(Branching(), (X, True))
    assert [message for message in warned(caplog) if "proj" in message] == []


def test_no_more_than_three_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Net()
    model.more = nn.ModuleList(nn.Linear(8, 2) for _ in range(5))
    with caplog.at_level(logging.WARNING):
        assert len(hp.find_groups(model, X).unreached) == 5
    assert "more.0, more.1, more.2" in warned(caplog)[0]
    assert "more.3" not in warned(caplog)[0]


def test_a_number_that_the_forward_does_not_read_has_no_width() -> None:
    model = Net()
    model.scale = nn.Parameter(torch.tensor(2.0))
    assert not hp.find_groups(model, X).unreached
