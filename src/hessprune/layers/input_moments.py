"""Mean and second moments of a layer's inputs: what least squares needs to make up for inputs that go."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hessprune.layers.least_squares import damping

DAMPING = 1e-3
"""Ridge added to a covariance, relative to its mean diagonal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputMoments:
    """Moments of the inputs `x` of a layer over samples and positions, one set for each group of a convolution."""

    mean: Tensor
    """`(g, K)`."""
    covariance: Tensor
    """`(g, K, K)`: the mean of `(x − x̄)(x − x̄)ᵀ`."""
    rows: int
    """Inputs that were averaged."""
    biased: bool = True
    """True for a layer that adds a bias."""

    def about(self, *, centred: bool) -> Tensor:
        """Return the second moments about the mean, or about zero, in float64, `(g, K, K)`."""
        covariance, mean = self.covariance.double(), self.mean.double()
        return covariance if centred else covariance + mean[:, :, None] * mean[:, None, :]

    def takeover(self, kept: Tensor, removed: Tensor, columns: Tensor, *, centred: bool) -> Tensor:
        """Return weights on the kept inputs that stand best for weights `W_J` on the removed ones.

        `(C_KK + λ I)⁻¹ C_KJ W_J`, with the second moments `C` and `λ` a thousandth of their mean diagonal.

        Args:
            kept: Indices of the inputs `K`.
            removed: Indices of the inputs `J`.
            columns: `W_J`, `(g, J, O)`.
            centred: Whether a bias absorbs a change of the mean output.

        Returns:
            `(g, K, O)` in float64.

        Example:
            >>> import torch
            >>> from hessprune.layers.input_moments import InputMoments
            >>> twins = InputMoments(mean=torch.zeros(1, 2), covariance=torch.ones(1, 2, 2), rows=9)
            >>> new = twins.takeover(torch.tensor([0]), torch.tensor([1]), torch.ones(1, 1, 1), centred=True)
            >>> round(float(new), 3)
            0.999
        """
        moments = self.about(centred=centred)
        ridge = damping(moments, DAMPING, self.mean.double().square().mean(1))
        rows = moments[:, kept]
        block = rows[:, :, kept] + torch.diag_embed(ridge[:, None].expand(-1, len(kept)))
        return torch.cholesky_solve(rows[:, :, removed] @ columns.double(), torch.linalg.cholesky(block))
