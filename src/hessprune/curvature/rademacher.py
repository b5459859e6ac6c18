r"""One backward pass per draw: a random mixture of the loss Hessian's columns in place of every column.

Let `u_n = S_n ξ_n`, with Rademacher signs `ξ` that are independent over samples. Samples do not interact, so that
`E ‖Σ_t δ_{n,c,t} a_{n,t}‖² = Σ_k ‖…^k‖²`: one backward pass for a whole batch estimates all traces
without bias.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.draws import signs
from hessprune.curvature.exact import choose_columns
from hessprune.curvature.moments import Moments
from hessprune.curvature.problem import Problem, check_finite
from hessprune.objectives.objective import BatchLoss


def rademacher_traces(problem: Problem, draws: range, seed: int) -> Moments:
    """Return the estimates of some draws, summed over samples.

    Args:
        problem: The model, the readout and the data.
        draws: Indices of the draws; each index gives other random numbers.
        seed: The user's seed.

    Returns:
        The sums, with the number of backward passes and the mass of samples left out.
    """
    moments = Moments.zeros(problem.readout.num_units)
    for place, inputs, loss in problem.each_batch("one-backward trace"):
        if not len(loss.counted()):
            moments.count(loss.samples, 0.0)
            continue
        streams = _Streams(seed=seed, draws=draws, position=place.position)
        if len(draws) == 1 or problem.tolerance == 0:
            _all_samples(problem, inputs, loss, streams, moments)
        else:
            _needed_samples(problem, inputs, loss, streams, moments)
    return moments.over_processes()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Streams:
    """Random signs of one batch; `position` is the place of its first sample in the data."""

    seed: int
    draws: range
    position: int

    def noise(self, rows: Tensor, count: int) -> Iterator[Tensor]:
        """Yield each draw's signs for the samples `rows`, `(n, count)`."""
        return (signs(self.seed, draw, self.position + rows, count) for draw in self.draws)


def _needed_samples(problem: Problem, inputs: Any, loss: BatchLoss, streams: _Streams, moments: Moments) -> None:
    """Compute all values first, then push back the samples with notable curvature."""
    factor = loss.factor(problem.values(inputs, loss))
    columns = choose_columns(factor, problem.tolerance)
    for rows in columns.samples(problem.chunk_size):
        with problem.tap(inputs, rows, len(streams.draws)) as tap:
            cotangents = (factor.draw(rows, xi) for xi in streams.noise(rows, columns.mass.shape[1]))
            moments.add(torch.stack([problem.push(tap, u) for u in cotangents]))
        moments.num_backwards += len(streams.draws)
    moments.count(loss.samples, factor.weight, columns.dropped, columns.total)


def _all_samples(problem: Problem, inputs: Any, loss: BatchLoss, streams: _Streams, moments: Moments) -> None:
    """Push every sample back right after its forward pass; for a single draw this is cheaper than all values first."""
    for rows in problem.chunks(loss.samples):
        with problem.tap(inputs, rows, len(streams.draws)) as tap:
            factor = loss.factor(check_finite(tap.values), rows)
            every = torch.arange(len(rows), device=rows.device)
            cotangents = (factor.draw(every, xi) for xi in streams.noise(rows, factor.mass.shape[1]))
            moments.add(torch.stack([problem.push(tap, u) for u in cotangents]))
        moments.num_backwards += len(streams.draws)
        moments.count(len(rows), factor.weight)
