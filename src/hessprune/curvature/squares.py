"""Sums of outer products of rows that arrive a few at a time."""

import torch
from torch import Tensor

from hessprune.foundation.shelf import Shelf

PANEL = 256
"""Columns of a symmetric product that are computed at once, without those that are known by symmetry."""
WAITING = 512
"""Rows that are multiplied at once. Adding a product to the sum takes as long as multiplying about a hundred rows."""


class Squares:
    """The sum of `rowsᵀ rows`, `(g, K, K)` in float64. Takes R K² / 2 multiplications, in the precision of the rows.

    Up to `WAITING` rows wait for others, so that few products of many rows are added.

    Args:
        shelf: Holds the sum.

    Example:
        >>> import torch
        >>> from hessprune.curvature.squares import Squares
        >>> from hessprune.foundation.shelf import Shelf
        >>> squares = Squares(Shelf())
        >>> squares.add(torch.tensor([[[1.0, 2.0]]]))
        >>> squares.add(torch.tensor([[[0.0, 1.0]]]))
        >>> squares.total()
        tensor([[[1., 2.],
                 [2., 5.]]], dtype=torch.float64)
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._total: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add rows `(g, R, K)`."""
        self._waiting.append(rows)
        if sum(part.shape[1] for part in self._waiting) >= WAITING:
            self._multiply()

    def total(self) -> Tensor | None:
        """Return the sum so far, which later rows change in place; None before any rows."""
        if self._waiting:
            self._multiply()
        return self._total

    def _multiply(self) -> None:
        rows = self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting, 1)
        self._waiting.clear()
        size = rows.shape[2]
        if self._total is None:
            self._total = self._shelf.zeros(len(rows), size, size, device=rows.device)
        for start in range(0, size, PANEL):
            end = min(start + PANEL, size)
            product = rows[:, :, start:end].mT @ rows[:, :, start:]
            self._total[:, start:end, start:] += product
            if end < size:
                self._total[:, end:, start:end] += product[:, :, end - start :].mT
