"""Elimination in blocks, against regressions and against elimination one by one."""

import pytest
import torch

from hessprune.curvature.elimination import BLOCKS, Elimination, eliminate, inverse
from tests.oracles import eliminated_one_by_one


def layer_of(units, size=1, *, outputs=4, groups=1, more=0, rank=None, seed=0):
    """A layer `(weight, inverse covariance, curvature, columns)` of correlated inputs, `more` of them of no unit."""
    generator = torch.Generator().manual_seed(seed)
    inputs = units * size + more
    x = torch.randn(groups, 4 * inputs, rank or inputs, generator=generator, dtype=torch.float64)
    mixing = torch.randn(rank or inputs, inputs, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(1, 0.05, x.shape[2]).double() @ mixing
    x += 0.1 * x.std() * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(groups, inputs, outputs, generator=generator, dtype=torch.float64)
    root = torch.randn(groups, outputs, outputs, generator=generator, dtype=torch.float64)
    columns = torch.randperm(inputs, generator=generator)[: units * size].view(units, size)
    covariance = x.mT @ x / x.shape[1]
    return weight, inverse(covariance, torch.zeros(groups, inputs).double()), root @ root.mT, columns


def run(layers, stops, blocks=BLOCKS):
    """The order, and the change of each layer's weight at each stop."""
    readers, order, changes = [Elimination(*layer) for layer in layers], [], []
    for gone in eliminate(readers, stops, blocks=blocks):
        order += gone
        changes.append([reader.change for reader in readers])
    return order, changes


def loss_of(layers, changes):
    """The loss of changed weights, `½ tr(ΔWᵀ P⁻¹ ΔW G)`."""
    return sum(
        float((change.mT @ torch.linalg.solve(layer[1], change) @ layer[2]).diagonal(dim1=1, dim2=2).sum() / 2)
        for layer, change in zip(layers, changes, strict=True)
    )


def in_order(weight, precision, curvature, columns):
    """The same layer with the inputs of no unit first, then those of the units, as concatenations have them."""
    stay = torch.tensor([place for place in range(weight.shape[1]) if place not in columns])
    order = torch.cat([stay, columns.flatten()])
    places = torch.arange(len(order))[len(stay) :].view_as(columns)
    return weight[:, order], precision[:, order[:, None], order], curvature, places


CASES = {
    "one input": [layer_of(12)],
    "several inputs": [layer_of(7, 3)],
    "groups": [layer_of(6, 2, groups=3)],
    "inputs of no unit": [layer_of(6, 2, more=5)],
    "inputs of no unit first": [in_order(*layer_of(6, 2, more=5))],
    "two layers": [layer_of(8), layer_of(8, 3, outputs=2, seed=1)],
    "few directions": [layer_of(12, rank=3)],
}


@pytest.mark.parametrize("blocks", [1, 3, BLOCKS])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_regression_on_what_is_left(name, blocks):
    layers, units = CASES[name], len(CASES[name][0][3])
    stops = sorted({1, units // 2, units})
    order, changes = run(layers, stops, blocks)
    assert sorted(order) == list(range(units))
    for number, at_stop in zip(stops, changes, strict=True):
        for (weight, precision, _, columns), change in zip(layers, at_stop, strict=True):
            gone = columns[order[:number]].flatten()
            left = torch.tensor([place for place in range(weight.shape[1]) if place not in gone], dtype=torch.int64)
            covariance, refitted = torch.linalg.inv(precision), torch.zeros_like(weight)
            target = covariance[:, left] @ weight
            refitted[:, left] = torch.linalg.solve(covariance[:, left][:, :, left], target)
            torch.testing.assert_close(weight + change, refitted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_one_are_elimination_one_by_one(name):
    layers, units = CASES[name], len(CASES[name][0][3])
    expected, weights = eliminated_one_by_one(layers, units)
    order, changes = run(layers, range(1, units + 1), blocks=units)
    assert order == expected
    for at_stop, at_step in zip(changes, weights, strict=True):
        for (weight, *_), change, other in zip(layers, at_stop, at_step, strict=True):
            torch.testing.assert_close(weight + change, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_one_block_with_all_units_as_candidates_is_elimination_one_by_one(name):
    """The stages in a block follow the same formulas as the whole layer."""
    layers, units = CASES[name], len(CASES[name][0][3])
    assert run(layers, [units], blocks=1)[0] == eliminated_one_by_one(layers, units)[0]


PROBLEMS = {
    "independent": [layer_of(192, seed=3)],
    "correlated": [layer_of(192, rank=24, seed=4)],
    "nearly equal": [layer_of(160, rank=4, outputs=16, seed=5)],
    "kernels": [layer_of(96, 3, rank=40, seed=6)],
    "groups": [layer_of(128, groups=2, rank=30, seed=7)],
    "two layers": [layer_of(160, rank=20, seed=8), layer_of(160, 2, more=9, outputs=8, seed=9)],
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_losses_along_the_path_are_close_to_those_one_by_one(name):
    layers, units = PROBLEMS[name], len(PROBLEMS[name][0][3])
    stops = [units * tenth // 10 for tenth in range(1, 11)]
    _, weights = eliminated_one_by_one(layers, units)
    _, changes = run(layers, stops)
    for stop, at_stop in zip(stops, changes, strict=True):
        expected = loss_of(layers, [w - layer[0] for w, layer in zip(weights[stop - 1], layers, strict=True)])
        assert loss_of(layers, at_stop) <= 1.02 * expected, (stop, units)


def test_layers_without_a_regression_lose_the_squares_of_weights():
    weight = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [2.0, 0.0]]], dtype=torch.float64)
    layer = Elimination(weight, torch.eye(3).double()[None], None, torch.arange(3)[:, None])
    torch.testing.assert_close(layer.losses(), torch.tensor([4.5, 1.0, 2.0]).double())
    assert [next(eliminate([layer], [1])), layer.change.tolist()] == [[1], [[[0, 0], [-1, -1], [0, 0]]]]


def test_the_first_of_equal_units_leaves_first():
    """Units change places, and rounding differs between equal ones; neither must decide."""
    weight, precision, curvature, _ = layer_of(80, rank=30, seed=10)
    twice = torch.arange(160) % 80
    covariance = torch.linalg.inv(precision)[:, twice[:, None], twice]
    layer = (weight[:, twice], inverse(covariance, torch.zeros(1, 160).double()), curvature, torch.arange(160)[:, None])
    order = run([layer], [160], blocks=8)[0]
    assert all(order.index(unit) < order.index(unit + 80) for unit in range(80))
