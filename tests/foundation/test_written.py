"""Sizes that a forward writes down are lowered where they fit, and only there."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.written import Resized, counted_value, is_written, lower, noting_sizes, written_size


class Heads(nn.Module):
    """Four heads of three numbers, by every call that can name a size."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        n = x.shape[0]
        ways = {
            "view": lambda: x.view(n, 4, 3),
            "view of a tuple": lambda: x.view((n, 4, -1)),
            "reshape": lambda: torch.reshape(x, (n, 4, 3)),
            "reshape by name": lambda: x.reshape(shape=(n, 4, 3)),
            "unflatten": lambda: x.unflatten(-1, (4, -1)),
            "split": lambda: torch.stack(x.split(4, 1), 2),
            "split in three": lambda: torch.stack(torch.split(x, [4, 4, 4], dim=1), 2),
            "expand": lambda: x.view(n, -1, 3).expand(n, 4, 3),
            "same": lambda: x.view(torch.float32).view(n, -1, 3),
        }
        return ways[self.way]() * scale


WAYS = {
    "view": ("view", 1, 3),
    "view of a tuple": ("view", 1, 3),
    "reshape": ("view", 1, 3),
    "reshape by name": ("view", 1, 3),
    "unflatten": ("view", 1, 3),
    "split": ("split", 1, 2),
    "split in three": ("split", 1, 2),
    "expand": ("expand", 1, 3),
    "same": ("view", 1, 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_gets_what_remains_of_its_size(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 9)
    lower(model, written_size(*WAYS[way], 4), 1)
    assert isinstance(model, Heads)
    assert isinstance(model, Resized)
    expected = x.view(2, 3, 3).transpose(1, 2) if way.startswith("split") else x.view(2, 3, 3)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("way", ["view", "reshape", "split", "split in three"])
def test_a_size_that_does_not_fit_stays(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 16 if way == "split" else 12)
    before = model(x)
    lower(model, written_size(*WAYS[way], 4), 1)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("way", ["view of a tuple", "unflatten"])
def test_an_open_size_must_fit_beside_it(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 8)
    before = model(x)
    lower(model, written_size(*WAYS[way], 4), 1)
    assert torch.equal(model(x), before)


def test_sizes_are_lowered_again_by_their_first_name() -> None:
    model = Heads("view")
    name = written_size("view", 1, 3, 4, model)
    lower(model, name, 1)
    assert written_size("view", 1, 3, 3, model) == name == "view(1 of 3)=4"
    lower(model, name, 1)
    assert counted_value(model, name) == 2
    assert model(torch.zeros(1, 6)).shape == (1, 2, 3)


def test_attributes_are_lowered_as_they_are() -> None:
    model = Heads("view")
    vars(model)["heads"] = 4
    lower(model, "heads", 1)
    assert (vars(model)["heads"], type(model)) == (3, Heads)
    assert counted_value(model, "way") is None
    assert is_written("view(1 of 3)=4")
    assert not is_written("heads")


def test_the_class_is_copied_pickled_and_shows_its_signature() -> None:
    model, x = Heads("view"), torch.randn(2, 9)
    lower(model, "view(1 of 3)=4", 1)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(again) is type(model)
        assert torch.equal(again(x, scale=2.0), model(x, scale=2.0))
    assert [*inspect.signature(model.forward).parameters] == ["x", "scale"]


def test_only_the_innermost_of_two_modules_lowers() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Heads("view")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).view(x.shape[0], 4, 2)

    model = Outer()
    lower(model, "view(1 of 3)=4", 1)
    lower(model.inner, "view(1 of 3)=4", 2)
    with noting_sizes() as named:
        assert model(torch.zeros(1, 6)).shape == (1, 3, 2)
    assert named == {(id(model), "view(1 of 3)=4"), (id(model.inner), "view(1 of 3)=4")}


def test_exported_graphs_hold_the_remaining_sizes() -> None:
    model, x = Heads("view"), torch.randn(2, 9)
    lower(model, "view(1 of 3)=4", 1)
    axes = ({0: torch.export.Dim.DYNAMIC}, None)
    program = torch.export.export(model, (x, 1.0), dynamic_shapes=axes)
    assert program.module()(torch.zeros(5, 9), 1.0).shape == (5, 3, 3)
