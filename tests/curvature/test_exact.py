"""The exact trace against the dense Hessian and the dense Gauss–Newton matrix."""

import pytest
import torch

from hessprune.curvature import block_traces
from tests.curvature.nets import PIECEWISE, SMOOTH, all_rows, batches_of, build, weights
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
