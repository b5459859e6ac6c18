r"""Factors `S_n` of every sample's loss Hessian `S_n S_nᵀ` in the outputs, by columns or mixed by noise.

Cross-entropy has the Hessian `diag(p) − p pᵀ`. With the classes in the order of falling probability, its Cholesky
factor has a closed form: with `r_k = Σ_{j≥k} p_j` the mass from class `k` on,

    S_kk = √(p_k r_{k+1} / r_k) ,    S_jk = −p_j √(p_k / (r_k r_{k+1})) for j > k ,

so `C − 1` columns suffice, and the columns after the first `k` have a trace of less than `r_{k+1}`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class LogitFactor(Protocol):
    """A factor `S_n` of `K` columns of every sample's loss Hessian in the logits."""

    @property
    def weight(self) -> float:
        """Weight of these samples in the divisor `W` of the mean loss."""
        ...

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`; their sum is the trace of the loss Hessian in the logits."""
        ...

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return column `index[i]` of sample `rows[i]`, shaped like the logits of these samples; −1 gives zeros."""
        ...

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n` for the samples `rows` and the noise `ξ`, `(len(rows), K)`."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftmaxFactor:
    """Factor of `w (diag(p) − p pᵀ)` at each of `P` positions; column `k·P + t` is class rank `k` at position `t`."""

    probability: Tensor  # (N, C, P), falling along C
    order: Tensor  # (N, C, P)
    sample_weight: Tensor  # (N, P)
    shape: torch.Size
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        diagonal, below = self._parts(slice(None))
        squares = self.probability.square().flip(1).cumsum(1).flip(1)[:, 1:]
        return ((diagonal.square() + below.square() * squares) * self.sample_weight[:, None]).flatten(1)

    def _parts(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Return `S_kk` and `√(p_k / (r_k r_{k+1}))`, each `(n, C − 1, P)`."""
        whole = self.probability[rows]
        p, tail = whole[:, :-1], whole.flip(1).cumsum(1).flip(1)  # r_k, summed from the small end
        here, after = tail[:, :-1], tail[:, 1:]
        safe = after > 0
        below = torch.where(safe, p / (here * after).clamp(min=torch.finfo(p.dtype).tiny), 0).sqrt()
        return torch.where(safe, p * after / here, 0).sqrt(), below

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, (self.shape[1] - 1) * self.sample_weight.shape[1]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        p, weight = self.probability[rows], self.sample_weight[rows]
        noise = noise.to(p.dtype).view(len(rows), p.shape[1] - 1, -1)
        diagonal, below = self._parts(rows)
        above = F.pad((below * noise).cumsum(1), (0, 0, 1, 0))  # Σ_{k<j}
        u = F.pad(diagonal * noise, (0, 0, 0, 1)) - p * above
        u = torch.empty_like(u).scatter_(1, self.order[rows], u) * weight.sqrt()[:, None]
        return u.view(len(rows), *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class DiagonalFactor:
    """Factor of a diagonal Hessian: one column for each logit of a sample."""

    diagonal: Tensor  # (N, K)
    shape: torch.Size
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        return self.diagonal

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, self.diagonal.shape[1]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        return (self.diagonal[rows].sqrt() * noise).view(len(rows), *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class DenseFactor:
    """Factor of any Hessian, held as one matrix for each sample."""

    matrix: Tensor  # (N, D, K)
    shape: torch.Size
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        return self.matrix.square().sum(1)

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, self.matrix.shape[2]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        return torch.einsum("ndk,nk->nd", self.matrix[rows], noise.to(self.matrix.dtype)).view(
            len(rows), *self.shape[1:]
        )


@dataclass(frozen=True, kw_only=True)
class JoinedFactor:
    """Factors of several outputs that lie side by side as `(N, D)`: their columns one after another."""

    parts: Sequence[LogitFactor]
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        return torch.cat([part.mass for part in self.parts], 1)

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, sum(part.mass.shape[1] for part in self.parts)))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        pieces = noise.split([part.mass.shape[1] for part in self.parts], 1)
        drawn = [part.draw(rows, piece).reshape(len(rows), -1) for part, piece in zip(self.parts, pieces, strict=True)]
        return torch.cat(drawn, 1)


def _one_hot(index: Tensor, size: int) -> Tensor:
    """Return one row per entry of `index`, `(n, size)`; −1 gives zeros."""
    return (torch.arange(size, device=index.device) == index[:, None]).double()
