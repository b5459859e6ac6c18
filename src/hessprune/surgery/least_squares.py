"""Ridge regression of one layer: new weights that reproduce given outputs, as near to the old weights as can be."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge strengths tried, relative to the mean diagonal of `XᵀX`."""

ROWS, BLOCK = 1024, 256
"""Rows and columns that are multiplied at once: with them a product of 576 columns takes half the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """New weights, and by how much they move the mean of the output."""

    weight: Tensor  # (g, K, O)
    shift: Tensor  # (g, O)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Sums of a regression `y ≈ x W` over its rows, in float64, batched over the groups `g` of a layer."""

    count: int
    x: Tensor  # (g, K)
    y: Tensor  # (g, O)
    xx: Tensor  # (g, K, K)
    xy: Tensor  # (g, K, O)
    yy: Tensor  # (g,)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        """Accumulate rows `x (R, g, K)` and `y (R, g, O)`, in portions that stay in the processor's cache.

        Half of the symmetric `XᵀX` is left out, block by block: R K² / 2 multiplications.
        """
        (_, groups, size), outputs = x.shape, y.shape[2]
        zeros = partial(torch.zeros, dtype=torch.float64, device=x.device)
        total_x, total_y, yy = zeros(groups, size), zeros(groups, outputs), zeros(groups)
        xx, xy = zeros(groups, size, size), zeros(groups, size, outputs)
        for few_x, few_y in zip(x.split(ROWS), y.split(ROWS), strict=True):
            own, wanted = few_x.double().transpose(0, 1), few_y.double().transpose(0, 1)
            for start in range(0, size, BLOCK):
                part = own[:, :, start : start + BLOCK]
                xx[:, start : start + BLOCK, start:].baddbmm_(part.mT, own[:, :, start:])
            xy.baddbmm_(own.mT, wanted)
            total_x += own.sum(1)
            total_y += wanted.sum(1)
            yy += wanted.square().sum((1, 2))
        return cls(count=len(x), x=total_x, y=total_y, xx=xx.triu() + xx.triu(1).mT, xy=xy, yy=yy)

    def about(self, x: Tensor, y: Tensor) -> "Moments":
        """Return the moments of `x − x̄` and `y − ȳ`, for `x̄ (g, K)` and `ȳ (g, O)`."""
        return Moments(
            count=self.count,
            x=self.x - self.count * x,
            y=self.y - self.count * y,
            xx=self.xx - _outer(self.x, x) - _outer(x, self.x - self.count * x),
            xy=self.xy - _outer(self.x, y) - _outer(x, self.y - self.count * y),
            yy=self.yy - (2 * self.y * y - self.count * y.square()).sum(1),
        )

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows."""
        return Moments(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    def solve(self, strength: float, old: Tensor) -> Tensor:
        """Minimise `‖y − x W‖² + λ ‖W − W₀‖²` with `λ = strength · mean diag XᵀX`, `(g, K, O)`."""
        scale = self.xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)[:, None]
        ridge = torch.diag_embed((strength * scale).expand(-1, self.xx.shape[1]))
        factor = torch.linalg.cholesky(self.xx + ridge)
        return old + torch.cholesky_solve(self.xy - self.xx @ old, factor)

    def error(self, weight: Tensor) -> float:
        """Squared error `‖y − x W‖²` over all groups."""
        explained = 2 * (weight * self.xy).sum() - (weight * (self.xx @ weight)).sum()
        return float(self.yy.sum() - explained)


def ridge(x: Tensor, y: Tensor, old: Tensor, *, held_out: Tensor, with_shift: bool) -> Fit:
    """Fit `y ≈ x W + b` around the old weights.

    The strength of the ridge is the one with the least error on the rows held out; the fit is then repeated on all
    rows. Where no strength beats the old weights there, they are kept. Takes R K² / 2 multiplications, and K³/3 for
    each strength.

    Args:
        x: Inputs, `(R, g, K)`.
        y: Outputs wanted, `(R, g, O)`.
        old: Weights to stay near, `(g, K, O)`.
        held_out: Which rows choose the strength, `(R,)` bool.
        with_shift: Whether the layer can absorb a constant `b`.

    Returns:
        Weights and shift, in float64.

    Example:
        >>> x = torch.randn(100, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> wanted = torch.tensor([[[1.0], [-2.0]]], dtype=torch.float64)
        >>> fit = ridge(x, x @ wanted[0] + 3, 0 * wanted, held_out=torch.arange(100) < 20, with_shift=True)
        >>> torch.allclose(fit.weight, wanted, atol=1e-4), round(float(fit.shift), 3)
        (True, 3.0)
    """
    old = old.double()
    fit, test = Moments.of(x[~held_out], y[~held_out]), Moments.of(x[held_out], y[held_out])
    mean_x, mean_y = (fit.x + test.x) / len(x), (fit.y + test.y) / len(x)
    if with_shift:
        fit, test = fit.about(mean_x, mean_y), test.about(mean_x, mean_y)
    errors = {strength: test.error(fit.solve(strength, old)) for strength in STRENGTHS}
    best = min(STRENGTHS, key=errors.__getitem__)
    weight = (fit + test).solve(best, old) if errors[best] < test.error(old) else old
    shift = mean_y - torch.einsum("gk,gko->go", mean_x, weight)
    return Fit(weight=weight, shift=shift if with_shift else torch.zeros_like(shift))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None]
