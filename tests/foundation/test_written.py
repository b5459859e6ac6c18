"""Sizes that a forward writes down are lowered where they fit, and only there."""

import copy
import inspect
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.written import Resized, WrittenSize, counted_value, is_written, lower, noting_sizes


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


class Resolution(nn.Module):
    """Takes positions apart, not channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], 4, 4, x.shape[2])


VIEW = "view(1:2 of 2 to 1:3)[1 of 3]=4"
WAYS = {
    "view": VIEW,
    "view of a tuple": VIEW,
    "reshape": VIEW,
    "reshape by name": VIEW,
    "unflatten": VIEW,
    "split": "split[1 of 2]=4",
    "split in three": "split[1 of 2]=4",
    "expand": "expand[1 of 3]=4",
    "same": VIEW,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_gets_what_remains_of_its_size(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 9)
    lower(model, WAYS[way], 1)
    assert isinstance(model, Heads)
    assert isinstance(model, Resized)
    expected = x.view(2, 3, 3).transpose(1, 2) if way.startswith("split") else x.view(2, 3, 3)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("way", ["view", "reshape", "split", "split in three"])
def test_a_size_that_does_not_fit_stays(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 16 if way == "split" else 12)
    before = model(x)
    lower(model, WAYS[way], 1)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("way", ["view of a tuple", "unflatten"])
def test_an_open_size_must_fit_beside_it(way: str) -> None:
    model, x = Heads(way), torch.randn(2, 8)
    before = model(x)
    lower(model, WAYS[way], 1)
    assert torch.equal(model(x), before)


def test_an_axis_of_the_same_size_elsewhere_stays() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(4, 4, -1, 3).reshape(4, 4, 2, 3, 3) if x.shape[-1] == 18 else x.view(4, 4, 3)

    model = Both()
    lower(model, "view(2:3 of 3 to 2:4)[2 of 4]=4", 1)
    lower(model, "view(1:2 of 2 to 1:3)[1 of 3]=4", 1)
    assert model(torch.zeros(4, 9)).shape == (4, 3, 3)
    assert model(torch.zeros(4, 12)).shape == (4, 4, 3)
    assert model(torch.zeros(4, 4, 18)).shape == (4, 4, 2, 3, 3)


class Grid(nn.Module):
    """Eight heads on a grid of eight by eight: the size stands in both calls, with an open one beside it."""

    def forward(self, x: Tensor) -> Tensor:  # (N, 8, 8, C)
        heads = x.view(x.shape[0], -1, 8, 32).transpose(1, 2)
        return heads.transpose(1, 2).reshape(x.shape[0], 8, 8, -1)


@pytest.mark.parametrize("left", [7, 4, 2])
def test_a_size_of_another_call_stays_where_an_open_size_would_take_it(left: int) -> None:
    model, x = Grid(), torch.randn(2, 8, 8, 32 * left)
    lower(model, "view(3:4 of 4 to 2:4)[2 of 4]=8", 8 - left)
    assert torch.equal(model(x), x)


def test_a_shape_that_fits_as_a_whole_stays() -> None:
    model = Resolution()
    lower(model, "view(2:3 of 3 to 2:4)[2 of 4]=4", 3)
    assert model(torch.zeros(2, 16, 32)).shape == (2, 4, 4, 32)


def test_both_ends_of_a_slice_are_lowered_where_the_whole_axis_fits() -> None:
    class Sliced(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x[:, :4], x[..., 4:-4], x[:, -4:], x[:, None, 0], x[::2]

    model = Sliced()
    for bound, left in ((12, 9), (4, 3), (8, 6)):
        lower(model, f"slice[1 of 2]={bound}", bound - left)
    x, dense = torch.arange(18.0).view(2, 9), torch.arange(24.0).view(2, 12)
    assert [part.shape[1] for part in model(x)[:3]] == [3, 3, 3]
    assert torch.equal(torch.cat(model(x)[:3], 1), x)
    assert torch.equal(torch.cat(model(dense)[:3], 1), dense)


def test_sizes_are_lowered_again_by_their_first_name() -> None:
    model = Heads("view")
    size = WrittenSize.parse(VIEW)
    assert size is not None
    name = size.name_in(model)
    lower(model, name, 1)
    assert replace(size, size=3).name_in(model) == name == VIEW
    lower(model, name, 1)
    assert counted_value(model, name) == 2
    assert model(torch.zeros(1, 6)).shape == (1, 2, 3)


def test_attributes_are_lowered_as_they_are() -> None:
    model = Heads("view")
    vars(model)["heads"] = 4
    lower(model, "heads", 1)
    assert (vars(model)["heads"], type(model)) == (3, Heads)
    assert counted_value(model, "way") is None
    assert is_written(VIEW)
    assert not is_written("heads")


def test_the_class_is_copied_pickled_and_shows_its_signature() -> None:
    model, x = Heads("view"), torch.randn(2, 9)
    lower(model, VIEW, 1)
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
            return self.inner(x).flatten(1).view(x.shape[0], 4, 2)

    model = Outer()
    lower(model, VIEW, 1)
    lower(model.inner, VIEW, 2)
    with noting_sizes() as named:
        assert model(torch.zeros(1, 6)).shape == (1, 3, 2)
    assert named == {(id(model), VIEW), (id(model.inner), VIEW)}


def test_exported_graphs_hold_the_remaining_sizes() -> None:
    model, x = Heads("view"), torch.randn(2, 9)
    lower(model, VIEW, 1)
    axes = ({0: torch.export.Dim.DYNAMIC}, None)
    program = torch.export.export(model, (x, 1.0), dynamic_shapes=axes)
    assert program.module()(torch.zeros(5, 9), 1.0).shape == (5, 3, 3)


class Computed(nn.Module):
    """Attention whose sizes are computed from the width of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        return self.proj(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def test_sizes_of_heads_stay_where_they_are_computed_from_a_narrower_embedding() -> None:
    torch.manual_seed(0)
    net, x = Computed().eval(), torch.randn(1, 5, 8)
    expected, lowered = net(x), copy.deepcopy(net)
    with torch.no_grad():
        lowered.qkv.weight = nn.Parameter(net.qkv.weight[:, :6])
        expected = net(torch.cat([x[..., :6], torch.zeros(1, 5, 2)], -1))
    with pytest.raises(RuntimeError, match="invalid for input"):
        lowered(x[..., :6])
    for name in ("width(2:3 of 3 to 2:5)[4 of 5]=4", "width(2:4 of 4 to 2:3)[2 of 3]=8"):
        lower(lowered, name, 0)
    with noting_sizes() as named:
        assert torch.allclose(lowered(x[..., :6]), expected, atol=1e-6)
    assert {name for _, name in named} == {*lowered.written_sizes}


def test_scores_stay_divided_by_the_root_of_the_dense_width() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4)

    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    net = Scores()
    lower(net, "scale[3 of 4]=16", 0)
    assert torch.allclose(net(q, k, v), (q @ k.mT / 4).softmax(-1) @ v, atol=1e-6)
