"""What stand-ins read, and the least squares behind them, against plain convolutions and torch.linalg.lstsq."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hessprune.layers.sums import Sums
from hessprune.structure.carriers import centre
from hessprune.surgery.implants.stand_ins import design, layer_sums, low_rank_fit, outputs


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 3), st.just("same"), st.just("valid")),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
)
def test_stand_ins_see_what_the_filter_sees(
    kernel: tuple[int, int], stride: int, padding: Any, dilation: int, bias: bool
) -> None:
    """Multiplied by the centre of the kernel, or by all of it, the design gives what a convolution gives."""
    stride = 1 if padding == "same" else stride
    layer = nn.Conv2d(3, 4, kernel, stride, padding, dilation, bias=bias).double()
    x = torch.randn(2, 3, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = outputs(layer, layer(x))
    torch.testing.assert_close(design(layer, x, 1) @ layer.weight.flatten(1).T, full, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        at = (slice(None), slice(None), *centre(layer))
        small = layer.weight[at].clone()
        layer.weight.zero_()
        layer.weight[at] = small
    torch.testing.assert_close(design(layer, x, None) @ small.T, outputs(layer, layer(x)), rtol=1e-10, atol=1e-10)


def test_the_solution_is_that_of_least_squares() -> None:
    x, y = rows(200, 6, 0) + 2, rows(200, 4, 1) - 1
    sums = Sums.of(x[:80], y[:80]) + Sums.of(x[80:], y[80:])
    expected = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(low_rank_fit(sums, None), expected, rtol=1e-4, atol=1e-5)
    x, y = x - x.mean(0), y - y.mean(0)
    weight = low_rank_fit(sums.centred(), None)
    torch.testing.assert_close(weight, torch.linalg.lstsq(x, y).solution, rtol=1e-4, atol=1e-5)
    some = sums.select(torch.tensor([4, 1]), torch.tensor([2]))
    torch.testing.assert_close(some.xy[:, 0], (rows(200, 6, 0) + 2)[:, [4, 1]].T @ (rows(200, 4, 1) - 1)[:, 2])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_of_a_given_rank_no_other_solution_is_better(rank: int) -> None:
    """Reduced-rank regression: the whitened problem has a truncated singular value decomposition for its solution."""
    x = rows(300, 6, 2) @ rows(6, 6, 3)
    y = x @ rows(6, 5, 4) + 0.1 * rows(300, 5, 5)
    weight = low_rank_fit(Sums.of(x, y), rank)
    assert torch.linalg.matrix_rank(weight, rtol=1e-8) == rank
    q, r = torch.linalg.qr(x)
    u, s, v = torch.linalg.svd(q.T @ y, full_matrices=False)
    best = torch.linalg.solve(r, u[:, :rank] * s[:rank] @ v[:rank])
    torch.testing.assert_close((y - x @ weight).square().sum(), (y - x @ best).square().sum(), rtol=1e-5, atol=0)


def test_moments_are_those_of_all_batches_and_leave_nothing_behind() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3)).double().train()
    x = rows(6, 2 * 25, 0).view(6, 2, 5, 5)
    sums = layer_sums(net, {"0": None}, [(x[:4], None), (x[4:], None)])["0"]
    with torch.no_grad():
        expected = Sums.of(design(net[0], x, None), outputs(net[0], net[0](x)))
    for name in ("x", "y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(sums, name), getattr(expected, name), rtol=1e-10, atol=1e-10)
    assert sums.count == expected.count == 150
    assert net.training
    assert not net[0]._forward_hooks


def test_constant_inputs_are_not_fitted_to_rounding_noise() -> None:
    x = torch.full((64, 6), 0.1)
    sums = Sums.of(x, torch.randn(64, 3, generator=torch.Generator().manual_seed(1)))
    weight = low_rank_fit(sums.centred(), None, sums.xx.diagonal().mean())
    assert float(weight.abs().max()) < 0.1
