"""Sums over rows: portions, blocks and means taken out afterwards change nothing."""

import torch

from hessprune.layers.sums import BLOCK, ROWS, Sums


def test_sums_about_the_means_are_those_of_centred_rows_whatever_the_portions():
    generator = torch.Generator().manual_seed(0)
    rows, groups, size = 2 * ROWS + 7, 2, BLOCK + 3
    x = 3 + torch.randn(rows, groups, size, generator=generator, dtype=torch.float64)
    y = torch.randn(rows, groups, 2, generator=generator, dtype=torch.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    own, plain_x, plain_y = Sums.of(x, y).about(mean_x, mean_y), x - mean_x, y - mean_y
    assert torch.allclose(own.xx, torch.einsum("rgk,rgl->gkl", plain_x, plain_x), rtol=1e-10, atol=1e-9)
    assert torch.allclose(own.xy, torch.einsum("rgk,rgo->gko", plain_x, plain_y), rtol=1e-10, atol=1e-9)
    assert torch.allclose(own.yy, plain_y.square().sum(0), rtol=1e-10)
    assert torch.allclose(own.x, torch.zeros_like(own.x), atol=1e-9)
    halves = Sums.of(x[:9], y[:9]) + Sums.of(x[9:], y[9:])
    assert torch.allclose(halves.about(mean_x, mean_y).xx, own.xx, rtol=1e-10, atol=1e-9)


def test_sums_of_single_precision_are_those_of_double_up_to_a_millionth_of_the_variance():
    generator = torch.Generator().manual_seed(1)
    x = 100 + torch.randn(3 * ROWS, 1, 40, generator=generator)
    y = -50 + torch.randn(3 * ROWS, 1, 3, generator=generator)
    own, exact = (Sums.of(*rows).centred() for rows in ((x, y), (x.double(), y.double())))
    for name in ("xx", "xy", "yy"):
        torch.testing.assert_close(getattr(own, name), getattr(exact, name), rtol=0, atol=1e-6 * len(x))
    halves = Sums.of(x.bfloat16(), y.bfloat16())
    torch.testing.assert_close(halves.xx, Sums.of(x.bfloat16().double(), y.bfloat16().double()).xx, rtol=1e-6, atol=0)


def test_sums_of_no_rows_are_zero():
    none = Sums.of(torch.zeros(0, 1, 4), torch.zeros(0, 1, 2))
    assert (none.count, none.xx.shape, float(none.xx.abs().max())) == (0, (1, 4, 4), 0.0)
