r"""Take inputs from a layer one unit after another, the others taking over each time: the optimal brain surgeon.

A layer `y = W x` whose output errs by `e` loses `½ eᵀ G e`. Without the inputs `J`, the best weights for the others are
those of a linear regression on them, whatever `G`; with the inverse covariance `P` of the inputs,

    ΔW = −P_{:J} P_JJ⁻¹ W_J ,    loss = ½ tr(W_Jᵀ P_JJ⁻¹ W_J G) ,    P ← P − P_{:J} P_JJ⁻¹ P_{J:} ,

so that each removal costs `O(K²)` and never another inversion.
"""

import torch
from torch import Tensor

DAMPING = 1e-3
"""Ridge added to the covariance, relative to its mean diagonal."""


class Elimination:
    """A layer that loses inputs.

    Args:
        weight: `(g, K, O)`: for each group of a convolution, from `K` inputs to `O` outputs.
        precision: Inverse covariance of the inputs, `(g, K, K)`, as `inverse` gives it.
        curvature: Loss curvature in the outputs, `(g, O, O)`.
        columns: Which inputs belong to each unit, `(U, m)`.

    References:
        Hassibi & Stork (1992), Second order derivatives for network pruning: Optimal Brain Surgeon; Kurtić et al.
        (2023), ZipLM, arXiv 2302.04089, for structures.
    """

    def __init__(self, weight: Tensor, precision: Tensor, curvature: Tensor, columns: Tensor) -> None:
        self._old, self._weight, self._precision = weight, weight.clone(), precision.clone()
        self._product = weight @ curvature
        self._columns = columns

    def losses(self, units: Tensor) -> Tensor:
        """Return what each of `units` would cost if it went next, `(len(units),)`."""
        columns = self._columns[units]
        inner = self._weight[:, columns] @ self._product[:, columns].mT  # (g, U, m, m)
        block = self._precision[:, columns[:, :, None], columns[:, None, :]]
        return torch.linalg.solve(block, inner).diagonal(dim1=-2, dim2=-1).sum((0, 2)) / 2

    def remove(self, unit: int) -> None:
        """Take the inputs of one unit away; the others take over."""
        gone = self._columns[unit]
        rows = self._precision[:, gone]
        share = torch.linalg.solve(rows[:, :, gone], rows)  # P_JJ⁻¹ P_J:
        for values in (self._weight, self._product):
            values.sub_(share.mT @ values[:, gone])
            values[:, gone] = 0
        self._precision.baddbmm_(rows.mT, share, alpha=-1)

    @property
    def change(self) -> Tensor:
        """How the weight has changed, `(g, K, O)`."""
        return self._weight - self._old


def inverse(covariance: Tensor) -> Tensor:
    """Return the inverse of damped covariances `(g, K, K)`."""
    scale = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    damped = covariance + torch.diag_embed((DAMPING * scale)[:, None].expand(-1, covariance.shape[1]))
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
