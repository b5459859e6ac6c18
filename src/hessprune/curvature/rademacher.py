r"""One backward pass per draw: random mixtures of the loss Hessian's columns instead of each of them.

With `u_n = S_n ξ_n`, `ξ` Rademacher and independent over samples, `E ‖Σ_t δ_{n,c,t} a_{n,t}‖² = Σ_k ‖…^k‖²` since
samples do not interact: one backward pass for a whole batch is an unbiased estimate of every unit's trace at once.
"""

from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.draws import signs
from hessprune.curvature.exact import choose_columns
from hessprune.curvature.moments import Moments
from hessprune.curvature.problem import Problem
from hessprune.curvature.risk import LogitFactor, logit_factor


def rademacher_traces(problem: Problem, draws: range, seed: int, first_sample: int = 0) -> Moments:
    """Return the sums over samples of the estimates from some draws.

    Args:
        problem: The model, the data and what is wanted.
        draws: Indices of the draws; each has random numbers of its own.
        seed: The user's seed.
        first_sample: Position of the first sample in the whole data.

    Returns:
        The sums, with the number of backward passes and the mass of samples left out.
    """
    moments = Moments.zeros(problem.want.num_units)
    for inputs, targets in problem.each_batch("one-backward trace"):
        logits = problem.logits(inputs)
        factor = logit_factor(problem.loss_fn, logits, targets)
        columns = choose_columns(factor, problem.tolerance)
        position = first_sample + moments.num_samples
        for rows in columns.needed_samples().split(problem.chunk_size):
            noise = [signs(seed, draw, position + rows, columns.order.shape[1]) for draw in draws]
            moments.add(_chunk(problem, inputs, logits, factor, rows, noise))
            moments.num_backwards += len(draws)
        moments.count(len(logits), factor.weight, columns.dropped, columns.total)
    return moments


def _chunk(
    problem: Problem, inputs: Any, logits: Tensor, factor: LogitFactor, rows: Tensor, noise: list[Tensor]
) -> Tensor:
    """Return each draw's contributions of the samples `rows`, `(D, N, num_units)`."""
    with problem.tap(inputs, rows, logits, len(noise)) as tap:
        return torch.stack([problem.push(tap, factor.draw(rows, xi)) for xi in noise])
