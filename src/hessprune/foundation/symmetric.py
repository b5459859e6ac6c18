r"""A large symmetric matrix, held whole or by a factor with few rows.

A whole matrix `Q` of size `U` takes `8 U²` bytes: 3.2 GB for 20 000. A factor `Φ` of `r` rows with `Q = Φᵀ Φ` takes
`4 r U` bytes, and computes a row of `Q` in `2 r U` operations.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprune.errors import ArgumentError

Indices = Tensor | Sequence[int]


class SymmetricMatrix(ABC):
    """A symmetric matrix `Q` of shape `(U, U)` that gives its rows, blocks and parts on request."""

    batch: int
    """Number of rows that are cheapest to request at once."""

    @property
    @abstractmethod
    def size(self) -> int:
        """`U`."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(U, U)`."""
        return self.size, self.size

    @abstractmethod
    def rows(self, index: Indices) -> Tensor:
        """Return some rows, `(n, U)`."""

    @abstractmethod
    def block(self, rows: Indices, columns: Indices) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""

    @abstractmethod
    def combined(self, amounts: Tensor, rows: Indices, columns: Indices) -> Tensor:
        """Return `Σ_i amounts_i Q[rows_i, columns]` in float64, `(m,)`."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""

    @abstractmethod
    def select(self, index: Tensor) -> "SymmetricMatrix":
        """Return the matrix of some rows and the same columns, by their indices or by booleans `(U,)`."""

    @abstractmethod
    def spread(self, mask: Tensor) -> "SymmetricMatrix":
        """Return a larger matrix that holds this one where the booleans `mask` are true, and zeros elsewhere."""

    @abstractmethod
    def abs(self) -> "SymmetricMatrix":
        """Return the matrix of absolute values, entry by entry."""

    @abstractmethod
    def simplest(self) -> "Tensor | SymmetricMatrix":
        """Return a plain tensor where the matrix is held whole, else this object."""

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return tensors, under names that begin with `name`, from which `symmetric_from` restores the matrix."""

    def dense(self) -> Tensor:
        """Return the whole matrix in float64: `8 U²` bytes."""
        every = torch.arange(self.size, device="cpu")
        return self.block(every, every)

    def is_finite(self) -> bool:
        """Return whether every entry is finite."""
        return bool(self.diagonal().isfinite().all())


@dataclass(frozen=True, eq=False)
class WholeMatrix(SymmetricMatrix):
    """A symmetric matrix that is held as one tensor."""

    matrix: Tensor
    """`(U, U)`."""
    batch = 1

    @property
    def size(self) -> int:
        """`U`."""
        return len(self.matrix)

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The tensor's shape, square or not, for messages about wrong ones."""
        return tuple(self.matrix.shape)

    def rows(self, index: Indices) -> Tensor:
        """Return some rows, `(n, U)`."""
        return self.matrix[_indices(index)].double()

    def block(self, rows: Indices, columns: Indices) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""
        return self.matrix[_indices(rows)[:, None], _indices(columns)].double()

    def combined(self, amounts: Tensor, rows: Indices, columns: Indices) -> Tensor:
        """Return `Σ_i amounts_i Q[rows_i, columns]` in float64, `(m,)`."""
        return amounts.double() @ self.block(rows, columns)

    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""
        return self.matrix.diagonal().double()

    def select(self, index: Tensor) -> "WholeMatrix":
        """Return the matrix of some rows and the same columns."""
        return self if _is_every(index) else WholeMatrix(self.matrix[index][:, index])

    def spread(self, mask: Tensor) -> "WholeMatrix":
        """Return a larger matrix, zero but where `mask`."""
        if bool(mask.all()):
            return self
        full = self.matrix.new_zeros(len(mask), len(mask))
        full[mask.nonzero(), mask.nonzero().T] = self.matrix
        return WholeMatrix(full)

    def abs(self) -> "WholeMatrix":
        """Return the matrix of absolute values."""
        return WholeMatrix(self.matrix.abs())

    def simplest(self) -> Tensor:
        """Return the matrix."""
        return self.matrix

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the matrix by name."""
        return {name: self.matrix}

    def is_finite(self) -> bool:
        """Return whether every entry is finite."""
        return bool(self.matrix.isfinite().all())


@dataclass(frozen=True, eq=False)
class Factor(SymmetricMatrix):
    """The matrix `Q = Φᵀ Φ`, or the absolute values of its entries; no `(U, U)` matrix is ever formed.

    A row costs `2 r U` operations. A hundred rows at once take a fraction of the time of a hundred single rows.

    Example:
        >>> import torch
        >>> from hessprune.foundation.symmetric import Factor
        >>> q = Factor(torch.tensor([[1.0, -2.0, 0.0]]))
        >>> q.rows([0]), q.abs().rows([0])
        (tensor([[ 1., -2.,  0.]]), tensor([[1., 2., 0.]]))
    """

    phi: Tensor
    """`Φ`, `(r, U)`, in float32 or float64; each column lies in one piece of memory."""
    absolute: bool = False
    batch = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", self.phi.T.contiguous().T)

    @property
    def size(self) -> int:
        """`U`."""
        return self.phi.shape[1]

    def rows(self, index: Indices) -> Tensor:
        """Return some rows, `(n, U)`, multiplied in the precision of `Φ`."""
        return self._signed(self.phi.T[_indices(index)] @ self.phi)

    def block(self, rows: Indices, columns: Indices) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""
        return self._signed(self._columns(rows).T @ self._columns(columns))

    def combined(self, amounts: Tensor, rows: Indices, columns: Indices) -> Tensor:
        """Return `Σ_i amounts_i Q[rows_i, columns]` in float64, `(m,)`; signed, in `r (n + m)` operations."""
        if self.absolute:
            return amounts.double() @ self.block(rows, columns)
        return (self._columns(rows) @ amounts.double()) @ self._columns(columns)

    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""
        return torch.cat([part.double().square().sum(0) for part in self.phi.split(1024, 1)])

    def select(self, index: Tensor) -> "Factor":
        """Return the matrix of some rows and the same columns."""
        return self if _is_every(index) else replace(self, phi=self.phi.T[index].T)

    def spread(self, mask: Tensor) -> "Factor":
        """Return a larger matrix, zero but where `mask`."""
        if bool(mask.all()):
            return self
        full = self.phi.new_zeros(len(mask), len(self.phi))
        full[mask] = self.phi.T
        return replace(self, phi=full.T)

    def abs(self) -> "Factor":
        """Return the matrix of absolute values."""
        return replace(self, absolute=True)

    def simplest(self) -> "Factor":
        """Return the factor."""
        return self

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the factor by a name with the suffix `signed` or `absolute`."""
        return {f"{name}:{'absolute' if self.absolute else 'signed'}": self.phi}

    def _columns(self, columns: Indices) -> Tensor:
        """Return columns of `Φ` in float64; neighbours are copied in one piece."""
        index = _indices(columns)
        first = int(index[0]) if len(index) else 0
        if torch.equal(index, torch.arange(first, first + len(index), device="cpu")):
            return self.phi[:, first : first + len(index)].double()
        return self.phi.T[index].double().T

    def _signed(self, product: Tensor) -> Tensor:
        return product.abs_() if self.absolute else product


def as_symmetric(value: "Tensor | SymmetricMatrix", name: str = "interactions") -> SymmetricMatrix:
    """Return a symmetric matrix from a tensor `(U, U)`; return a `SymmetricMatrix` as it is.

    Raises:
        ArgumentError: The value is neither; `name` is the argument that the message names.
    """
    if isinstance(value, SymmetricMatrix):
        return value
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ArgumentError(f"`{name}` must be a tensor (U, U) or a `Factor`, got {kind}. Pass `torch.tensor(…)`.")
    return WholeMatrix(value.detach().cpu())


def symmetric_from(tensors: Mapping[str, Tensor], name: str) -> "Tensor | SymmetricMatrix | None":
    """Return the matrix that `SymmetricMatrix.tensors` wrote by `name` among other tensors, or None."""
    for kind in ("signed", "absolute"):
        if f"{name}:{kind}" in tensors:
            return Factor(tensors[f"{name}:{kind}"], kind == "absolute")
    return tensors.get(name)


def _indices(index: Indices) -> Tensor:
    return index.long() if isinstance(index, Tensor) else torch.as_tensor(index, dtype=torch.int64, device="cpu")


def _is_every(index: Tensor) -> bool:
    """Return whether booleans choose all rows, so that nothing has to be copied."""
    return index.dtype == torch.bool and bool(index.all())
