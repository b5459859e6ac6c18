"""Ridge regression of one layer: new weights near the old ones that reproduce target outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hessprune.layers.sums import Sums

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Strengths of the ridge, relative to the mean diagonal of `XᵀX`; the best one is chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """New weights, and the constant that they leave to the bias."""

    weight: Tensor  # (g, K, O)
    shift: Tensor  # (g, O)


FLOOR = 1e-10
"""Least ridge, relative to the mean square of the inputs about zero: the variance of constants is rounding noise."""


def solve(sums: Sums, strength: float, old: Tensor, size: Tensor | None = None) -> Tensor:
    """Minimise `‖y − x W‖² + λ ‖W − W₀‖²` with `λ = strength · mean diag XᵀX`, `(g, K, O)`.

    Args:
        sums: Of the regression, perhaps about its means.
        strength: Of the ridge.
        old: `W₀`.
        size: Mean of the diagonal of `XᵀX` about zero, `(g,)`; `λ` is at least `FLOOR` of it.
    """
    return old + _change(sums, strength, sums.xy - sums.xx @ old, size)


def damping(moments: Tensor, strength: float, size: Tensor | None) -> Tensor:
    """Return `λ = strength · mean diag`, at least `FLOOR` of `size`, for moments `(*, K, K)`, as `(*)`.

    Example:
        >>> float(damping(torch.zeros(3, 3), 0.1, torch.tensor(2e10)))
        2.0
    """
    scale = strength * moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)
    return scale if size is None else torch.maximum(scale, FLOOR * size)


def _change(sums: Sums, strength: float, left: Tensor, size: Tensor | None) -> Tensor:
    """Return `W − W₀` from `left = Xᵀy − XᵀX W₀`."""
    damped = sums.xx.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping(sums.xx, strength, size)[:, None])
    factor = torch.linalg.cholesky(damped)
    return torch.cholesky_solve(left, factor)


def lowest(error: Callable[[int], float]) -> tuple[int, float]:
    """Return the number of the strength with least error, and that: from the middle on, downhill.

    Example:
        >>> from hessprune.layers.least_squares import lowest
        >>> lowest([5.0, 2.0, 3.0, 4.0, 6.0].__getitem__)
        (1, 2.0)
    """
    known = {place: error(place) for place in (len(STRENGTHS) // 2 + step for step in (0, -1, 1))}
    while True:
        best = min(sorted(known), key=known.__getitem__)
        new = [place for place in (best - 1, best + 1) if 0 <= place < len(STRENGTHS) and place not in known]
        if not new:
            return best, known[best]
        known |= {place: error(place) for place in new}


def ridge(x: Tensor, y: Tensor, old: Tensor, *, held_out: Tensor, with_shift: bool) -> Fit:
    """Fit `y ≈ x W + b` around the old weights.

    The ridge strength with the least error on the held-out rows is chosen, and the fit is repeated on all rows. From
    the middle one the search goes on to a neighbour as long as the error falls. The old weights are kept if no strength
    has a lower error than theirs. Takes R K² / 2 multiplications, and K³/3 for each of three to five solutions.

    Args:
        x: Inputs, `(R, g, K)`.
        y: Target outputs, `(R, g, O)`.
        old: Old weights, `(g, K, O)`.
        held_out: Mask of the rows that choose the strength, `(R,)` bool.
        with_shift: True if the layer can absorb a constant `b`.

    Returns:
        Weights and shift, in float64.

    Example:
        >>> import torch
        >>> from hessprune.layers.least_squares import ridge
        >>> x = torch.randn(100, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> target = torch.tensor([[[1.0], [-2.0]]], dtype=torch.float64)
        >>> fit = ridge(x, x @ target[0] + 3, 0 * target, held_out=torch.arange(100) < 20, with_shift=True)
        >>> torch.allclose(fit.weight, target, atol=1e-4), round(float(fit.shift), 3)
        (True, 3.0)
    """
    return ridge_of(Sums.of(x[~held_out], y[~held_out]), Sums.of(x[held_out], y[held_out]), old, with_shift=with_shift)


def ridge_of(fit: Sums, test: Sums, old: Tensor, *, with_shift: bool) -> Fit:
    """Fit as `ridge` does, from sums over the rows that fit and over those that choose the strength.

    Args:
        fit: Of the rows that fit.
        test: Of the rows that choose.
        old: Old weights, `(g, K, O)`.
        with_shift: True if the layer can absorb a constant.
    """
    old, count = old.double(), fit.count + test.count
    size = (fit.xx + test.xx).diagonal(dim1=1, dim2=2).mean(1)
    mean_x, mean_y = (fit.x + test.x) / count, (fit.y + test.y) / count
    if with_shift:
        fit, test = fit.about(mean_x, mean_y), test.about(mean_x, mean_y)
    left = fit.xy - fit.xx @ old
    best, error = lowest(lambda n: float(test.error(old + _change(fit, STRENGTHS[n], left, size)).sum()))
    weight = solve(fit + test, STRENGTHS[best], old, size) if error < float(test.error(old).sum()) else old
    shift = mean_y - torch.einsum("gk,gko->go", mean_x, weight)
    return Fit(weight=weight, shift=shift if with_shift else torch.zeros_like(shift))
