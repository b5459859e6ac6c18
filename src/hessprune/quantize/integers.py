"""What the kernels of ONNX Runtime compute on x86 with AVX2: exact sums of integers, and one float32 formula each.

A value is an integer tensor q with a grid, and stands for `s·(q − z)`. Sums of integers are taken in float32 where
they fit into its 24 bits and in float64 otherwise, so they are exact in any order. Halves are rounded to even.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Grid(NamedTuple):
    """Scale s, zero point z and type of the integers of a value."""

    scale: float
    zero: int
    dtype: torch.dtype

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        info = torch.iinfo(self.dtype)
        return info.min, info.max

    def scale_like(self, x: Tensor) -> Tensor:
        """Return the scale where x is: a number would be turned into its reciprocal on some devices."""
        return torch.tensor(self.scale, dtype=torch.float32, device=x.device)


def quantize(x: Tensor, grid: Grid) -> Tensor:
    """Return the integers `clamp(round(x / s) + z)` of floats."""
    return _stored((x / grid.scale_like(x)).round() + grid.zero, grid)


def layer(
    function: Callable[..., Tensor],
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    *,
    arguments: Sequence[Any],
    grids: tuple[Grid, Grid | None],
) -> Tensor:
    """Return `round(Σ·(s_x·s_w / s_y)) + z_y` with Σ the sums of a convolution or linear layer, bias included.

    Without a grid for y, `Σ·(s_x·s_w)` in floats. The weights are integers, their scales, and the integer bias.
    """
    weight, scale, bias = weights
    grid, out = grids
    dtype = _exact_type(x, weight, bias, grid)
    numbers = [None if value is None else value.to(dtype) for value in (weight, bias)]
    sums = function(x.to(dtype) - grid.zero, *numbers, *arguments).float()
    scale = scale * grid.scale_like(x)
    if out is not None:
        scale = scale / out.scale_like(x)
    y = sums * scale.reshape(-1, *(1,) * (weight.dim() - 2))
    return y if out is None else _stored(y.round() + out.zero, out)


def _exact_type(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> torch.dtype:
    """Return the floats in which no partial sum is rounded; off the CPU, float32 may compute in fewer than 24 bits."""
    if x.device.type != "cpu":
        return torch.float64
    largest = max(abs(limit - grid.zero) for limit in grid.limits)
    sums = weight.flatten(1).double().abs().sum(1) * largest + (0 if bias is None else bias.double().abs())
    return torch.float32 if float(sums.max()) < 2**24 else torch.float64


def add(a: Tensor, b: Tensor, *, grids: tuple[Grid, Grid, Grid]) -> Tensor:
    """Return `round(r_a·a + (r_b·b + c))` with `r = s / s_y` and `c = z_y − (r_a·z_a + r_b·z_b)`, each sum fused."""
    first, second, out = grids
    r_a, r_b = (grid.scale_like(a) / out.scale_like(a) for grid in (first, second))
    zeros = _fused(r_a, first.zero, r_b * second.zero)
    y = _fused(b, r_b, out.zero - zeros)
    return _stored(_fused(a, r_a, y).round(), out)


def multiply(a: Tensor, b: Tensor, *, grids: tuple[Grid, Grid, Grid]) -> Tensor:
    """Return `round((a − z_a)·(b − z_b)·(s_a·s_b / s_y) + z_y)`."""
    first, second, out = grids
    ratio = first.scale_like(a) * second.scale_like(a) / out.scale_like(a)
    return _stored(((a.float() - first.zero) * (b.float() - second.zero) * ratio + out.zero).round(), out)


def average(x: Tensor, *, arguments: Sequence[Any], grids: tuple[Grid, Grid]) -> Tensor:
    """Return `round(Σ·(s_x / (s_y·n))) + z_y` for means over all n pixels, else `round(mean / s_y + z_y)`."""
    grid, out = grids
    padding = arguments[2:3]
    if list(arguments[0]) == list(x.shape[2:]) and not any(map(any, padding)):
        ratio = grid.scale_like(x) / (out.scale_like(x) * x[0, 0].numel())
        sums = (x.double() - grid.zero).sum((2, 3), keepdim=True).float()
        return _stored((sums * ratio).round() + out.zero, out)
    means = F.avg_pool2d((x.float() - grid.zero) * grid.scale_like(x), *arguments)
    return _stored((means / out.scale_like(x) + out.zero).round(), out)


def _fused(x: Tensor, factor: Tensor | int, summand: Tensor) -> Tensor:
    """Return `x·factor + summand`, rounded once: float64 holds the product, and the sum but for rare last bits."""
    return (x.double() * factor + summand.double()).float()


def _stored(x: Tensor, grid: Grid) -> Tensor:
    return x.clamp(*grid.limits).to(grid.dtype)
