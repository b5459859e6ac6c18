r"""Remove inputs of a layer unit by unit, and refit the weights of the other inputs each time (optimal brain surgeon).

An output error `e` of a layer `y = W x` costs a loss of `½ eᵀ G e`. Without the inputs `J`, the best weights of the
other inputs are those of a linear regression, for any `G`. With the inverse covariance `P` of the inputs,

    ΔW = −P_{:J} P_JJ⁻¹ W_J ,    loss = ½ tr(W_Jᵀ P_JJ⁻¹ W_J G) ,    P ← P − P_{:J} P_JJ⁻¹ P_{J:} .

The loss needs the blocks of `P` and of `M = W G Wᵀ` for each unit alone, and both change in the same way. So a block of
units is removed in two stages: one by one among the cheapest candidates, on the candidates' rows and columns of `P` and
`M`; then all of them at once from the whole layer, by one matrix product.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hessprune.foundation.shelf import Shelf
from hessprune.layers.input_moments import DAMPING
from hessprune.layers.least_squares import damping

PANEL = 256
"""Rows of a table that are filled at once."""
BLOCKS = 32
"""Divisor of the units that are left: a block removes so many of them, at least one.

One by one, a layer of `K` inputs changes `K²` numbers for each of its `U` units; in blocks, about `32 ln(U / 32) + 32`
times in all. With smaller blocks that takes longer; larger ones find fewer of the units whose loss falls in between.
"""
CANDIDATES = 8
"""Candidates for each unit that a block removes."""
TIE = 1e-9
"""Relative difference below which two losses count as equal, so that rounding decides nothing."""


class Elimination:
    """One layer whose inputs are removed block by block.

    The state is one table with a row for each input that is left, `[W, W G, P]`, in double precision: the updates
    subtract nearly equal numbers. Rows of units lie in *places*; the last units move to the places of those that leave,
    so that the table shrinks.

    Args:
        weight: `(g, K, O)`: for each group of a convolution, from `K` inputs to `O` outputs.
        precision: Inverse covariance of the inputs, `(g, K, K)`, from `inverse`.
        curvature: Loss curvature in the outputs, `(g, O, O)`; None for the identity.
        columns: Indices of the inputs of each unit, `(U, m)`. Inputs of no unit stay.
        shelf: Holds the table.

    References:
        Hassibi & Stork (1992), Second order derivatives for network pruning: Optimal Brain Surgeon; Kurtić et al.
        (2023), ZipLM, arXiv 2302.04089, for structures.
    """

    def __init__(
        self,
        weight: Tensor,
        precision: Tensor,
        curvature: Tensor | None,
        columns: Tensor,
        *,
        shelf: Shelf | None = None,
    ) -> None:
        self.num_units, self._size = columns.shape
        stay = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        stay[columns] = False
        self._stay = int(stay.sum())
        self._inputs = torch.cat([stay.nonzero().squeeze(1), columns.flatten()])
        self._old, self._outputs = weight, weight.shape[2]
        product = weight if curvature is None else weight @ curvature
        width = 2 * self._outputs + columns.numel()
        self._table = (shelf or Shelf()).zeros(*weight.shape[:2], width, device=weight.device)
        for start in range(0, weight.shape[1], PANEL):
            part, rows = slice(start, start + PANEL), self._inputs[start : start + PANEL]
            pieces = weight[:, rows], product[:, rows], precision[:, rows[:, None], columns.flatten()]
            self._table[:, part] = torch.cat(pieces, 2)

    def losses(self) -> Tensor:
        """Return the loss of removing each unit that is left next, by place, `(num_units,)`."""
        weight, product, precision = self._left()
        inner = weight @ product.mT  # (g, U, m, m)
        size = self._size
        block = precision.unflatten(2, (-1, size)).unflatten(1, (-1, size)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        ratio = inner / block if size == 1 else torch.linalg.solve(block, inner)
        return ratio.diagonal(dim1=-2, dim2=-1).sum((0, 2)) / 2

    def candidates(self, places: Tensor, number: int) -> "Candidates":
        """Return what the removal of a number of some units, one by one, changes among these units."""
        rows = self._rows(places)
        weight, product = (values[:, rows] for values in self._table[:, :, : 2 * self._outputs].chunk(2, 2))
        precision = self._table[:, rows[:, None], self._columns(places)]
        return Candidates(precision.cpu().numpy(), (weight @ product.mT).cpu().numpy(), self._size, number)

    def remove(self, places: Tensor, moves: tuple[Tensor, Tensor]) -> None:
        """Remove the units at some places and refit the weights of the others; then move units, from and to places."""
        table, columns = self._table[:, : self._height, : self._width], self._columns(places)
        rows, shares = table[:, self._rows(places)], table.index_select(2, columns).mT
        root = torch.linalg.cholesky(rows[:, :, columns])
        rows, shares = (torch.linalg.solve_triangular(root, part, upper=False) for part in (rows, shares))
        table.baddbmm_(shares.mT, rows, alpha=-1)
        origins, targets = moves
        self._inputs[self._rows(targets)] = self._inputs[self._rows(origins)]
        table[:, self._rows(targets)] = table[:, self._rows(origins)]
        table[:, :, self._columns(targets)] = table.index_select(2, self._columns(origins))
        self.num_units -= len(places)

    @property
    def change(self) -> Tensor:
        """Change of the weight so far, `(g, K, O)`."""
        change = -self._old
        change[:, self._inputs[: self._height]] += self._table[:, : self._height, : self._outputs]
        return change

    @property
    def _height(self) -> int:
        return self._stay + self.num_units * self._size

    @property
    def _width(self) -> int:
        return 2 * self._outputs + self.num_units * self._size

    def _left(self) -> list[Tensor]:
        """Return `W`, `W G`, both `(g, U, m, O)`, and `P`, `(g, U m, U m)`, of the units that are left."""
        table, outputs = self._table[:, self._stay : self._height], self._outputs
        sides = [table[:, :, start : start + outputs].unflatten(1, (-1, self._size)) for start in (0, outputs)]
        return [*sides, table[:, :, 2 * outputs : self._width]]

    def _rows(self, places: Tensor) -> Tensor:
        return self._stay + self._offsets(places)

    def _columns(self, places: Tensor) -> Tensor:
        return 2 * self._outputs + self._offsets(places)

    def _offsets(self, places: Tensor) -> Tensor:
        places = places.to(self._table.device)
        return (places[:, None] * self._size + torch.arange(self._size, device=places.device)).flatten()


class Candidates:
    """Units of one layer that are removed one by one, on nothing but their own rows and columns of `P` and `W G Wᵀ`.

    With `S = P_JJ⁻¹ P_J:` and `T = M_J: − ½ M_JJ S`, a removal subtracts `Sᵀ P_J:` from `P` and `Sᵀ T + Tᵀ S` from `M`.
    The rows of a unit are brought up to date when it is removed, the blocks on the diagonals at once.

    Args:
        precision: `P`, `(g, n m, n m)` for `n` candidates.
        inner: `M = W G Wᵀ`, of the same shape.
        size: Inputs of each unit, `m`.
        number: Units that will be removed.
    """

    def __init__(self, precision: np.ndarray, inner: np.ndarray, size: int, number: int) -> None:
        self._start = np.concatenate([precision, inner], 2)
        self._width, self._size = precision.shape[2], size
        self._precision, self._inner = self._blocks(precision), self._blocks(inner)
        self._shares = np.empty((len(precision), number * size, self._width))
        self._lost = np.empty((len(precision), number * size, 2 * self._width))  # P_J: and T
        self._done = 0

    def losses(self) -> np.ndarray:
        """Return the loss of removing each candidate next, `(n,)`; zeros for those that are gone."""
        if self._size == 1:
            return (self._inner / self._precision).sum((0, 2, 3)) / 2
        return np.trace(np.linalg.solve(self._precision, self._inner), axis1=2, axis2=3).sum(0) / 2

    def remove(self, number: int) -> None:
        """Remove one candidate, and refit the others."""
        size, width = self._size, self._width
        gone, done = slice(number * size, (number + 1) * size), slice(self._done)
        shares, lost = self._shares[:, done], self._lost[:, done]
        rows = self._start[:, gone] - shares[:, :, gone].transpose(0, 2, 1) @ lost
        rows[:, :, width:] -= lost[:, :, width:][:, :, gone].transpose(0, 2, 1) @ shares
        block, half = rows[:, :, gone], rows[:, :, width:]
        share = rows[:, :, :width] / block if size == 1 else np.linalg.solve(block, rows[:, :, :width])
        half -= half[:, :, gone] @ share / 2
        self._precision -= self._products(share, rows[:, :, :width])
        change = self._products(share, half)
        self._inner -= change + np.swapaxes(change, 2, 3)
        self._precision[:, number], self._inner[:, number] = np.eye(size), 0
        here = slice(self._done, self._done + size)
        self._shares[:, here], self._lost[:, here] = share, rows
        self._done += size

    def _products(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the blocks on the diagonal of `leftᵀ right`, `(g, n, m, m)`, of matrices `(g, m, n m)`."""
        left, right = (side.reshape(*side.shape[:2], -1, self._size) for side in (left, right))
        return left.transpose(0, 2, 3, 1) @ right.transpose(0, 2, 1, 3)

    def _blocks(self, values: np.ndarray) -> np.ndarray:
        """Return a copy of the block of each unit, `(g, n, m, m)`."""
        groups, number = len(values), values.shape[1] // self._size
        split = values.reshape(groups, number, self._size, number, self._size)
        return np.moveaxis(np.diagonal(split, axis1=1, axis2=3), -1, 1).copy()


def eliminate(layers: Sequence[Elimination], stops: Sequence[int], *, blocks: int = BLOCKS) -> Iterator[list[int]]:
    """Remove the units that all `layers` read, from least to most needed.

    Args:
        layers: The layers that read the units, with the same `num_units`.
        stops: Rising numbers of removed units at which to halt.
        blocks: Divisor of the units that are left, for the size of a block; as many as units: one by one.

    Yields:
        At each stop the units that left since the last one, in order.
    """
    units, removed = torch.arange(layers[0].num_units, device="cpu"), 0  # the unit at each place
    for stop in stops:
        gone: list[int] = []
        while removed < stop:
            number = min(stop - removed, max(1, len(units) // blocks))
            places = _next_of(layers, units, number)
            gone += units[places].tolist()
            origins, targets = moves = _moves(places, len(units))
            for layer in layers:
                layer.remove(places, moves)
            units[targets] = units[origins]
            units = units[: len(units) - number]
            removed += number
        yield gone


def _next_of(layers: Sequence[Elimination], units: Tensor, number: int) -> Tensor:
    """Return the places of the units that leave next, one by one, among those that cost least now."""
    losses = torch.stack([layer.losses() for layer in layers]).sum(0).cpu().numpy()
    cheapest = _ranked(losses, units.numpy())[: CANDIDATES * number]
    if number == 1:
        return torch.from_numpy(cheapest[:1])
    candidates = [layer.candidates(torch.from_numpy(cheapest), number) for layer in layers]
    chosen: list[int] = []
    for _ in range(number):
        losses = np.sum([candidate.losses() for candidate in candidates], 0)
        losses[chosen] = np.inf
        chosen.append(_first_of_least(losses))
        for candidate in candidates:
            candidate.remove(chosen[-1])
    return torch.from_numpy(cheapest[chosen])


def _ranked(losses: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the places by rising loss; equal losses, which differ by rounding, by unit."""
    order = np.argsort(losses, kind="stable")
    rising = losses[order]
    level = np.cumsum(np.diff(rising, prepend=rising[0]) > TIE * np.abs(rising))
    return order[np.lexsort((units[order], level))]


def _first_of_least(losses: np.ndarray) -> int:
    """Return the first index of the least loss; identical units differ by rounding and count as equal."""
    least = losses.min()
    return int((losses <= least + TIE * abs(least)).argmax())


def _moves(places: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return from where and to where units move, so that the first `number − len(places)` places are filled."""
    left = number - len(places)
    stays = torch.ones(number, dtype=torch.bool, device="cpu")
    stays[places] = False
    return left + stays[left:].nonzero().squeeze(1), (~stays[:left]).nonzero().squeeze(1)


def inverse(covariance: Tensor, mean: Tensor, shelf: Shelf | None = None) -> Tensor:
    """Return the inverse of damped covariances `(g, K, K)`, for inputs with the mean `(g, K)`; the argument is damped.

    Two further matrices are held at a time, on the shelf.
    """
    ridge = damping(covariance, DAMPING, mean.square().mean(1))
    covariance.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    shelf = shelf or Shelf()
    root, result = (shelf.zeros(*covariance.shape, device=covariance.device) for _ in range(2))
    torch.linalg.cholesky(covariance, out=root.mT)  # by columns, so that LAPACK works in place
    torch.cholesky_inverse(root.mT, out=result.mT)
    return result
