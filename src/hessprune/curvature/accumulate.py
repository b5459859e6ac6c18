r"""Add up `Q = Σ φ φᵀ` over many rows `φ`: as a whole matrix, or as a factor with a bounded number of rows.

The factor stores rows in a buffer. When the buffer is full, its rows are rotated to the eigenvectors of the small Gram
matrix `Φ Φᵀ`, and the half with the least eigenvalues is dropped. The dropped part is positive semi-definite, so every
entry of `Q` is off by at most the dropped trace, which is computed exactly.
"""

import torch
from torch import Tensor

from hessprune.foundation.processes import gathered_rows, num_processes, summed, summed_numbers
from hessprune.foundation.symmetric import Factor, SymmetricMatrix, WholeMatrix

DENSE_UNITS = 4096
"""Most units for which the whole matrix is held: 134 MB."""
FACTOR_ROWS = 4096
"""Most rows of a factor: for 20 000 units 328 MB."""
_FLUSH = 512
_COLUMNS = 2048


class DenseSum:
    """The sum `Σ φ φᵀ`, `(U, U)` on the CPU in float64; rows are multiplied by the hundred in their precision."""

    def __init__(self, num_units: int) -> None:
        self._total = torch.zeros(num_units, num_units, dtype=torch.float64, device="cpu")
        self._waiting: list[Tensor] = []
        self.dropped = 0.0

    def add(self, rows: Tensor) -> None:
        """Add rows `(n, U)`."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= _FLUSH:
            self._flush()

    def over_processes(self) -> None:
        """Add the rows of all processes."""
        self._flush()
        self._total = summed(self._total)

    def result(self, weight: float) -> SymmetricMatrix:
        """Return the sum over `weight`."""
        self._flush()
        return WholeMatrix(self._total.div_(weight))

    def _flush(self) -> None:
        if self._waiting:
            rows = torch.cat(self._waiting)
            self._total += (rows.T @ rows).double().cpu()
            self._waiting = []


class FactorSum:
    """The sum `Σ φ φᵀ` as a factor of at most `capacity` rows, `(r, U)`.

    Takes the memory of the buffer twice, or of the buffer and its Gram matrix in float64. For `n` rows in all it
    takes about `6 n r U` operations and `2 n / r` eigendecompositions of size `r = capacity`.
    """

    def __init__(self, num_units: int, capacity: int) -> None:
        self._num_units, self._capacity, self._filled = num_units, capacity, 0
        self._buffer = torch.zeros(0, num_units, device="cpu")
        self.dropped = 0.0
        """Trace of the dropped part, before division by the weight."""

    def add(self, rows: Tensor) -> None:
        """Add rows `(n, U)`."""
        for part in rows.split(max(1, self._capacity - self._capacity // 2)):
            if self._filled + len(part) > self._capacity:
                self._compress()
            self._reserve(self._filled + len(part), part)
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)

    def over_processes(self) -> None:
        """Add the rows of all processes; each holds all of them then."""
        if num_processes() > 1:
            rows, (dropped,) = gathered_rows(self._buffer[: self._filled]), summed_numbers(self.dropped)
            self._filled, self.dropped = 0, dropped
            self.add(rows)

    def result(self, weight: float) -> SymmetricMatrix:
        """Return the sum over `weight`."""
        return Factor(self._buffer[: self._filled].mul_(weight**-0.5).cpu())

    def _reserve(self, rows: int, like: Tensor) -> None:
        """Grow the buffer: to a fourth of the capacity at first, then to all of it."""
        if rows > len(self._buffer):
            size = self._capacity if rows > self._capacity // 4 else max(1, self._capacity // 4)
            grown = like.new_empty(size, self._num_units)
            grown[: self._filled] = self._buffer[: self._filled]
            self._buffer = grown

    def _compress(self) -> None:
        """Keep the half of the directions with the largest eigenvalues, in place."""
        full = self._buffer[: self._filled]
        kept = self._capacity // 2
        before = _trace(full)
        gram = sum(
            ((part @ part.T).double() for part in full.split(_COLUMNS, 1)), full.new_zeros((), dtype=torch.float64)
        )
        main = torch.linalg.eigh(gram)[1][:, -kept:].T.to(full.dtype)
        for part in full.split(_COLUMNS, 1):
            part[:kept] = main @ part
        self._filled = kept
        self.dropped += max(0.0, before - _trace(full[:kept]))


def _trace(rows: Tensor) -> float:
    """`Tr(ΦᵀΦ)` in float64, without a copy of `Φ` in float64."""
    return sum(float(part.double().square().sum()) for part in rows.split(256))


def new_sum(num_units: int, max_rows: int | None) -> DenseSum | FactorSum:
    """Return an empty sum: a whole matrix for few units where `max_rows` is None, else a factor."""
    if max_rows is None and num_units <= DENSE_UNITS:
        return DenseSum(num_units)
    return FactorSum(num_units, max_rows or FACTOR_ROWS)
