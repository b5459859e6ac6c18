r"""The exact trace: one backward pass for every column of every sample's loss Hessian.

`Tr(H_cc) = (1/W) Σ_n Σ_k ‖ Σ_t δ^k_{n,c,t} a_{n,t} ‖²`, where `δ^k` is column `k` of `S_n` pushed back to the layer's
output and `a` its input patches. It equals the Hessian's trace where the network behind the layer is piecewise linear
and the layer is used once.

A confident sample has few columns of notable mass. Columns are taken in the order of falling mass until the rest of a
batch holds at most `tolerance` of the loss curvature in the logits. Samples are sorted by their number of columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.moments import Moments
from hessprune.curvature.problem import Problem
from hessprune.objectives.factors import LogitFactor


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are taken of each sample of a batch."""

    mass: Tensor
    """Mass of each column, `(N, K)`."""
    counts: Tensor
    """Number of columns taken of each sample, those of largest mass, `(N,)`."""
    dropped: float
    """Mass of the columns that are not taken."""
    total: float
    """Mass of all columns."""

    def samples(self, size: int, *, every: bool = False) -> tuple[Tensor, ...]:
        """Return chunks of the samples with any column, or of all samples; those with most columns first."""
        rows = self.counts.argsort(descending=True, stable=True)
        rows = rows if every else rows[: int((self.counts > 0).sum())]
        return rows.split(size) if len(rows) else ()

    def chunks(self, size: int, *, every_sample: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples and their columns `(n, k)`, −1 where a sample has fewer; samples with most columns first."""
        for rows in self.samples(size, every=every_sample):
            number = int(self.counts[rows[0]])
            columns = self.mass[rows].argsort(dim=1, descending=True, stable=True)[:, :number]
            yield rows, columns.where(torch.arange(number, device=rows.device) < self.counts[rows][:, None], -1)


def choose_columns(factor: LogitFactor, tolerance: float) -> Columns:
    """Take columns by falling mass until at most `tolerance` of the batch's mass is left.

    All columns with the mass of the lightest taken one are taken too, so that the order among equals does not matter.

    Args:
        factor: The batch's loss curvature in the logits.
        tolerance: Share of the mass that may be left out; with 0 every column with any mass is taken.

    Returns:
        The columns of each sample.

    Example:
        >>> import torch
        >>> from hessprune.curvature.exact import choose_columns
        >>> from hessprune.curvature.factoring import logit_factor
        >>> sure = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> choose_columns(logit_factor(None, sure, torch.tensor([0, 1])), 1e-3).counts
        tensor([0, 2])
    """
    mass = factor.mass
    rising = mass.flatten().sort().values
    sums = rising.cumsum(0)
    number = int((sums <= tolerance * sums[-1]).sum())  # of columns to leave out, the lightest
    kept = mass >= rising[number] if number < len(rising) else torch.zeros_like(mass, dtype=torch.bool)
    return Columns(mass=mass, counts=kept.sum(1), dropped=float(mass[~kept].sum()), total=float(sums[-1]))


def exact_traces(problem: Problem) -> Moments:
    """Return the sums over samples of the exact contributions."""
    moments = Moments.zeros(problem.readout.num_units)
    for _, inputs, loss in problem.each_batch("exact trace"):
        if not len(loss.counted()):
            moments.count(loss.samples, 0.0)
            continue
        factor = loss.factor(problem.values(inputs, loss))
        columns = choose_columns(factor, problem.tolerance)
        for rows, index in columns.chunks(problem.chunk_size):
            moments.add(_chunk(problem, inputs, factor, rows, index)[None])
            moments.num_backwards += index.shape[1]
        moments.count(loss.samples, factor.weight, columns.dropped, columns.total)
    return moments.over_processes()


def _chunk(problem: Problem, inputs: Any, factor: LogitFactor, rows: Tensor, index: Tensor) -> Tensor:
    """Return the sum over columns of each sample's contributions, `(N, num_units)`."""
    with problem.tap(inputs, rows, index.shape[1]) as tap:
        columns = (factor.columns(rows, column) for column in index.unbind(1))
        return sum((problem.push(tap, column) for column in columns), start=torch.zeros((), device=index.device))
