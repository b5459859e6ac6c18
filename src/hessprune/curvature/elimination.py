r"""Remove inputs of a layer unit by unit, and refit the weights of the other inputs each time (optimal brain surgeon).

An output error `e` of a layer `y = W x` costs a loss of `½ eᵀ G e`. Without the inputs `J`, the best weights of the
other inputs are those of a linear regression, for any `G`. With the inverse covariance `P` of the inputs,

    ΔW = −P_{:J} P_JJ⁻¹ W_J ,    loss = ½ tr(W_Jᵀ P_JJ⁻¹ W_J G) ,    P ← P − P_{:J} P_JJ⁻¹ P_{J:} ,

so that a removal costs `O(K²)` operations and no further inversion.
"""

import torch
from torch import Tensor

DAMPING = 1e-3
"""Ridge added to the covariance, relative to its mean diagonal."""


class Elimination:
    """One layer whose inputs are removed unit by unit.

    Args:
        weight: `(g, K, O)`: for each group of a convolution, from `K` inputs to `O` outputs.
        precision: Inverse covariance of the inputs, `(g, K, K)`, from `inverse`.
        curvature: Loss curvature in the outputs, `(g, O, O)`.
        columns: Indices of the inputs of each unit, `(U, m)`.

    References:
        Hassibi & Stork (1992), Second order derivatives for network pruning: Optimal Brain Surgeon; Kurtić et al.
        (2023), ZipLM, arXiv 2302.04089, for structures.
    """

    def __init__(self, weight: Tensor, precision: Tensor, curvature: Tensor, columns: Tensor) -> None:
        self._old, self._weight, self._precision = weight, weight.clone(), precision.clone()
        self._product = weight @ curvature
        self._columns = columns

    def losses(self, units: Tensor) -> Tensor:
        """Return the loss of removing each of `units` next, `(len(units),)`."""
        columns = self._columns[units]
        inner = self._weight[:, columns] @ self._product[:, columns].mT  # (g, U, m, m)
        block = self._precision[:, columns[:, :, None], columns[:, None, :]]
        return torch.linalg.solve(block, inner).diagonal(dim1=-2, dim2=-1).sum((0, 2)) / 2

    def remove(self, unit: int) -> None:
        """Remove the inputs of one unit, and refit the weights of the others."""
        gone = self._columns[unit]
        rows = self._precision[:, gone]
        share = torch.linalg.solve(rows[:, :, gone], rows)  # P_JJ⁻¹ P_J:
        for values in (self._weight, self._product):
            values.sub_(share.mT @ values[:, gone])
            values[:, gone] = 0
        self._precision.baddbmm_(rows.mT, share, alpha=-1)

    @property
    def change(self) -> Tensor:
        """Change of the weight so far, `(g, K, O)`."""
        return self._weight - self._old


FLOOR = 1e-10
"""Least ridge, relative to the mean square of the inputs: the variance of constant inputs is rounding noise."""


def inverse(covariance: Tensor, mean: Tensor) -> Tensor:
    """Return the inverse of damped covariances `(g, K, K)`, for inputs with the mean `(g, K)`."""
    scale = DAMPING * covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    scale = torch.maximum(scale, FLOOR * mean.square().mean(1))
    damped = covariance + torch.diag_embed(scale[:, None].expand(-1, covariance.shape[1]))
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
