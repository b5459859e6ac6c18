"""Rows that are written to computed positions: the units of both tensors go together."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from tests.networks.check import masked


def add(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.index_add(0, rows, new)


def add_in_place(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    out = out.clone()
    out.index_add_(0, rows, new, alpha=2)
    return out


def copy(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.index_copy(0, rows, new)


def put(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.index_put((rows,), new, accumulate=True)


def assign(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    out = out.clone()
    out[rows] = new
    return out


def assign_masked(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    out, mask = out.clone(), torch.zeros(len(out), dtype=torch.bool)
    mask[rows] = True
    out[mask] = new
    return out


def scatter(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.scatter(0, rows[:, None].expand(-1, out.shape[1]), new)


def scatter_sums(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.scatter_add(0, rows[:, None].expand_as(new), new)


def scatter_largest(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.scatter_reduce(0, rows[:, None].expand_as(new), new, "amax")


def gather(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out + out.gather(0, rows[:, None].expand_as(new)).sum(0) + out.gather(0, new.argsort(0)).sum(0)


def scatter_number(out: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    return out.scatter(0, rows[:, None].expand_as(new), 0.0) + out.mean(0) * new.sum(0)


class Writing(nn.Module):
    """A layer that reads some rows, and writes to them."""

    def __init__(self, write: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h, rows = self.up(x), (x[:, 0] > 0).nonzero()[:, 0]
        return self.head(F.relu(self.write(h, rows, self.inner(h[rows]))))


ROWS = [
    add,
    add_in_place,
    copy,
    put,
    assign,
    assign_masked,
    scatter,
    scatter_sums,
    scatter_largest,
    scatter_number,
    gather,
]


@pytest.mark.parametrize("write", ROWS)
def test_units_of_both_tensors_go_together(write: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    net, x = Writing(write).double().eval(), torch.randn(20, 6, dtype=torch.float64)
    groups = hp.find_groups(net, x)
    (group,) = (group for group in groups if group.num_units == 12)
    assert {piece.param for piece in group.slices_with_role("producer")} == {"up.weight", "inner.weight"}
    result = hp.prune(net, x, [x], budget=hp.Budget(units=0.5), method="magnitude", compensate=False)
    assert len(result.plan.removed[group.name]) == 6
    torch.testing.assert_close(result.model(x), masked(net, groups, result.plan.removed)(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_axis_of_the_positions_stays_whole(axis: int) -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h, places = self.up(x), torch.tensor([0, 2])
            return self.head(h.index_add(axis, places, torch.ones_like(h).index_select(axis, places)).relu())

    groups = hp.find_groups(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Columns()), torch.randn(5, 6))
    assert (8 in {group.num_units for group in groups}) is (axis == 0)


@pytest.mark.parametrize(("axis", "size"), [(0, 6), (0, 8), (1, 8)])
def test_units_stay_on_axes_that_are_scattered_to_or_of_which_a_part_is_written(axis: int, size: int) -> None:
    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x)
            return self.head(h.scatter(axis, torch.zeros(2, min(size, h.shape[1]), dtype=torch.int64), 1.0).relu())

    groups = hp.find_groups(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Columns()), torch.randn(5, 6))
    assert (8 in {group.num_units for group in groups}) is ((axis, size) == (0, 8))
