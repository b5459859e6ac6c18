"""Ridge regression of one layer: new weights that reproduce given outputs, as near to the old weights as can be."""

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge strengths tried, relative to the mean diagonal of `XᵀX`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """New weights, and by how much they move the mean of the output."""

    weight: Tensor  # (g, K, O)
    shift: Tensor  # (g, O)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """Sums of a regression `y ≈ x W` over its rows, in float64, batched over the groups `g` of a layer."""

    xx: Tensor  # (g, K, K)
    xy: Tensor  # (g, K, O)
    yy: Tensor  # (g,)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Moments":
        """Accumulate rows `x (R, g, K)` and `y (R, g, O)`."""
        x, y = x.transpose(0, 1), y.transpose(0, 1)
        return cls(xx=x.mT @ x, xy=x.mT @ y, yy=y.square().sum((1, 2)))

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of rows."""
        return Moments(xx=self.xx + other.xx, xy=self.xy + other.xy, yy=self.yy + other.yy)

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
    rows. Where no strength beats the old weights there, they are kept. Takes O(R K²) and K³/3 for each strength.

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
    x, y, old = x.double(), y.double(), old.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    if with_shift:
        x, y = x - mean_x, y - mean_y
    fit, test = Moments.of(x[~held_out], y[~held_out]), Moments.of(x[held_out], y[held_out])
    errors = {strength: test.error(fit.solve(strength, old)) for strength in STRENGTHS}
    best = min(STRENGTHS, key=errors.__getitem__)
    weight = (fit + test).solve(best, old) if errors[best] < test.error(old) else old
    shift = mean_y - torch.einsum("gk,gko->go", mean_x, weight)
    return Fit(weight=weight, shift=shift if with_shift else torch.zeros_like(shift))
