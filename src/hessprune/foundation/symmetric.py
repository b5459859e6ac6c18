r"""How removals interact: a symmetric matrix over all units, held whole or by a factor with few rows.

Entry `(u, v)` is what removing `v` adds to the cost of removing `u`. Whole, `U` units take `8 U²` bytes: 3.2 GB for
20 000. A factor `Φ` with `Q = Φᵀ Φ` and `r` rows takes `4 r U`, and gives a row of `Q` for `2 r U` operations.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprune.errors import ArgumentError

Units = Tensor | Sequence[int]


class Interactions(ABC):
    """A symmetric `(U, U)` matrix, known by what a selection asks of it."""

    batch: int
    """How many rows are best asked for at once."""

    @property
    @abstractmethod
    def num_units(self) -> int:
        """`U`."""

    @property
    def shape(self) -> tuple[int, int]:
        """`(U, U)`."""
        return self.num_units, self.num_units

    @abstractmethod
    def rows(self, units: Units) -> Tensor:
        """Return the rows of some units, `(n, U)`."""

    @abstractmethod
    def block(self, units: Units, columns: Units) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""

    @abstractmethod
    def combined(self, amounts: Tensor, units: Units, columns: Units) -> Tensor:
        """Return `Σ_i amounts_i Q[units_i, columns]` in float64, `(m,)`."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""

    @abstractmethod
    def select(self, units: Tensor) -> "Interactions":
        """Return the interactions among some units: their indices, or `(U,)` booleans."""

    @abstractmethod
    def spread(self, owned: Tensor) -> "Interactions":
        """Return the interactions among more units, zero but where the booleans `owned` are true."""

    @abstractmethod
    def abs(self) -> "Interactions":
        """Return the interactions with the absolute value of every entry."""

    @abstractmethod
    def simplest(self) -> "Tensor | Interactions":
        """Return the matrix itself where it is held whole."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what `interactions_from` makes the same interactions of."""

    def dense(self) -> Tensor:
        """Return the whole matrix in float64: `8 U²` bytes."""
        every = torch.arange(self.num_units)
        return self.block(every, every)

    def is_finite(self) -> bool:
        """Return whether every entry is finite."""
        return bool(self.diagonal().isfinite().all())


@dataclass(frozen=True, eq=False)
class Dense(Interactions):
    """The matrix itself."""

    matrix: Tensor
    """`(U, U)`."""
    batch = 1

    @property
    def num_units(self) -> int:
        """`U`."""
        return len(self.matrix)

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Shape as given, for messages about wrong ones."""
        return tuple(self.matrix.shape)

    def rows(self, units: Units) -> Tensor:
        """Return the rows of some units, `(n, U)`."""
        return self.matrix[_indices(units)].double()

    def block(self, units: Units, columns: Units) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""
        return self.matrix[_indices(units)[:, None], _indices(columns)].double()

    def combined(self, amounts: Tensor, units: Units, columns: Units) -> Tensor:
        """Return `Σ_i amounts_i Q[units_i, columns]` in float64, `(m,)`."""
        return amounts.double() @ self.block(units, columns)

    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""
        return self.matrix.diagonal().double()

    def select(self, units: Tensor) -> "Dense":
        """Return the interactions among some units."""
        return self if _is_every(units) else Dense(self.matrix[units][:, units])

    def spread(self, owned: Tensor) -> "Dense":
        """Return the interactions among more units, zero but where `owned`."""
        if bool(owned.all()):
            return self
        full = self.matrix.new_zeros(len(owned), len(owned))
        full[owned.nonzero(), owned.nonzero().T] = self.matrix
        return Dense(full)

    def abs(self) -> "Dense":
        """Return the absolute values."""
        return Dense(self.matrix.abs())

    def simplest(self) -> Tensor:
        """Return the matrix."""
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        """Return the matrix by name."""
        return {"interactions": self.matrix}

    def is_finite(self) -> bool:
        """Return whether every entry is finite."""
        return bool(self.matrix.isfinite().all())


@dataclass(frozen=True, eq=False)
class Factor(Interactions):
    """`Q = Φᵀ Φ`, or the absolute values of its entries; no `(U, U)` matrix is ever formed.

    A row costs `2 r U` operations; asked for by the hundred, rows come several times faster than one by one.

    Example:
        >>> q = Factor(torch.tensor([[1.0, -2.0, 0.0]]))
        >>> q.rows([0]), q.abs().rows([0])
        (tensor([[ 1., -2.,  0.]]), tensor([[1., 2., 0.]]))
    """

    phi: Tensor
    """`(r, U)`: float32, or float64; a unit's column lies in one piece of memory."""
    absolute: bool = False
    batch = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", self.phi.T.contiguous().T)

    @property
    def num_units(self) -> int:
        """`U`."""
        return self.phi.shape[1]

    def rows(self, units: Units) -> Tensor:
        """Return the rows of some units, `(n, U)`, multiplied in the precision of `Φ`."""
        return self._signed(self.phi.T[_indices(units)] @ self.phi)

    def block(self, units: Units, columns: Units) -> Tensor:
        """Return some rows and columns in float64, `(n, m)`."""
        return self._signed(self._columns(units).T @ self._columns(columns))

    def combined(self, amounts: Tensor, units: Units, columns: Units) -> Tensor:
        """Return `Σ_i amounts_i Q[units_i, columns]` in float64, `(m,)`; signed, in `r (n + m)` operations."""
        if self.absolute:
            return amounts.double() @ self.block(units, columns)
        return (self._columns(units) @ amounts.double()) @ self._columns(columns)

    def diagonal(self) -> Tensor:
        """Return the diagonal in float64, `(U,)`."""
        return torch.cat([part.double().square().sum(0) for part in self.phi.split(1024, 1)])

    def select(self, units: Tensor) -> "Factor":
        """Return the interactions among some units."""
        return self if _is_every(units) else replace(self, phi=self.phi.T[units].T)

    def spread(self, owned: Tensor) -> "Factor":
        """Return the interactions among more units, zero but where `owned`."""
        if bool(owned.all()):
            return self
        full = self.phi.new_zeros(len(owned), len(self.phi))
        full[owned] = self.phi.T
        return replace(self, phi=full.T)

    def abs(self) -> "Factor":
        """Return the absolute values."""
        return replace(self, absolute=True)

    def simplest(self) -> "Factor":
        """Return the factor."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return the factor by a name that says whether absolute values are meant."""
        return {f"interactions:{'absolute' if self.absolute else 'signed'}": self.phi}

    def _columns(self, units: Units) -> Tensor:
        """Return columns of `Φ` in float64; neighbours are not gathered one by one."""
        index = _indices(units)
        first = int(index[0]) if len(index) else 0
        if torch.equal(index, torch.arange(first, first + len(index))):
            return self.phi[:, first : first + len(index)].double()
        return self.phi.T[index].double().T

    def _signed(self, product: Tensor) -> Tensor:
        return product.abs_() if self.absolute else product


def as_interactions(value: "Tensor | Interactions") -> Interactions:
    """Return what a selection can work with, from a matrix `(U, U)` or a factor.

    Raises:
        ArgumentError: It is neither.
    """
    if isinstance(value, Interactions):
        return value
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ArgumentError(
            f"`interactions` must be a tensor (U, U) or a `Factor`, got {kind}. Pass `torch.tensor(…)`."
        )
    return Dense(value.detach().cpu())


def interactions_from(tensors: Mapping[str, Tensor]) -> "Tensor | Interactions | None":
    """Return what `Interactions.tensors` wrote among other tensors, or None."""
    for name, absolute in (("interactions:signed", False), ("interactions:absolute", True)):
        if name in tensors:
            return Factor(tensors[name], absolute)
    return tensors.get("interactions")


def _indices(units: Units) -> Tensor:
    return torch.as_tensor(units, dtype=torch.int64)


def _is_every(units: Tensor) -> bool:
    """Whether booleans choose all units: then nothing has to be copied."""
    return units.dtype == torch.bool and bool(units.all())
