"""The exact trace against the dense Hessian and the dense Gauss–Newton matrix."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.curvature import ParamSlice, TraceOptions, block_traces
from hessprune.curvature.exact import choose_columns
from hessprune.curvature.gate_interactions import gate_interactions
from hessprune.objectives.factors import DiagonalFactor
from tests.curvature.nets import PIECEWISE, SMOOTH, all_rows, batches_of, build, rows, weights
from tests.oracles import block_traces_of, dense_ggn, dense_hessian

EXACT = {"rtol": 1e-10, "atol": 1e-14}  # linear algebra in float64


@pytest.mark.parametrize("name", PIECEWISE)
def test_exact_trace_is_the_dense_hessian_trace(name):
    model, batches = build(PIECEWISE[name]), batches_of()
    result = block_traces(model, all_rows(model), batches, precision="fp64")
    assert result.kind == "hessian"
    for weight in weights(model):
        hessian = dense_hessian(model, batches, weight)
        for dim in (0, 1):
            expected = block_traces_of(hessian, model.get_parameter(weight).shape, dim)
            torch.testing.assert_close(result.values[f"{weight}:{dim}"], expected, **EXACT, msg=f"{weight} along {dim}")


@pytest.mark.parametrize("name", SMOOTH)
def test_exact_trace_is_the_dense_gauss_newton_trace(name):
    model, batches = build(SMOOTH[name]), batches_of()
    result = block_traces(model, all_rows(model), batches, precision="fp64")
    assert result.kind == "ggn"
    for weight in weights(model):
        ggn = dense_ggn(model, batches, weight)
        for dim in (0, 1):
            expected = block_traces_of(ggn, model.get_parameter(weight).shape, dim)
            torch.testing.assert_close(result.values[f"{weight}:{dim}"], expected, **EXACT, msg=f"{weight} along {dim}")


class Scaled(nn.Module):
    """`f = w x` with more outputs in a batch than the tolerance of single precision can tell apart by share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


MANY = 600_000
"""Samples of two outputs, of equal mass 1 / 2: each has a share below 1e-6, which may be left out."""


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_equal_masses_are_not_dropped_together(estimator):
    model, x = Scaled(), torch.linspace(-1, 1, MANY)[:, None]
    run = {"estimator": estimator, "loss_fn": nn.MSELoss(), "options": TraceOptions(chunk_size=MANY)}
    result = block_traces(model, {"out": [rows(model, "layer.weight", 0)]}, [(x, torch.zeros(MANY, 2))], **run)
    expected = x.square().double().mean().expand(2)  # 2 / D = 1 for D = 2 outputs
    torch.testing.assert_close(result.values["out"], expected, rtol=1e-4, atol=0)
    assert result.dropped_mass <= 1e-6


def test_gates_with_equal_masses_keep_their_curvature():
    model, x = Scaled(), torch.linspace(-1, 1, MANY)[:, None]
    gates = {"in": [ParamSlice(param="layer.weight", dim=1, index=torch.tensor([[0]]))]}
    run = {"loss_fn": nn.MSELoss(), "options": TraceOptions(chunk_size=MANY)}
    result = gate_interactions(model, gates, [(x, torch.zeros(MANY, 2))], **run)
    expected = x.square().double().mean() * model.layer.weight.detach().double().square().sum()
    torch.testing.assert_close(result.diagonal, expected[None], rtol=1e-4, atol=0)


def factor_with(mass):
    mass = torch.tensor(mass, dtype=torch.float64)
    return DiagonalFactor(diagonal=mass, shape=mass.shape, weight=1.0)


@pytest.mark.parametrize(
    ("mass", "tolerance", "counts"),
    [
        ([[1, 1], [1, 1]], 0.3, [2, 2]),  # one of four could go, but which?
        ([[1, 1], [2, 1]], 0.4, [2, 2]),
        ([[1, 2], [2, 1]], 0.4, [1, 1]),
        ([[0, 2], [0, 0]], 0.0, [1, 0]),
        ([[0, 0], [0, 0]], 0.0, [0, 0]),
        ([[0.1, 0.2], [0.3, 0.7]], 1.0, [0, 0]),
    ],
)
def test_columns_are_dropped_by_rank_and_ties_are_kept(mass, tolerance, counts):
    columns = choose_columns(factor_with(mass), tolerance)
    assert columns.counts.tolist() == counts
    assert columns.dropped <= tolerance * columns.total
    taken = [(int(row), int(c)) for row, index in columns.chunks(1) for c in index[0]]
    heaviest = [sorted(range(2), key=lambda c, m=m: (-m[c], c))[:n] for m, n in zip(mass, counts, strict=True)]
    assert sorted(taken) == [(n, c) for n, some in enumerate(heaviest) for c in sorted(some)]
