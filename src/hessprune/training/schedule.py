"""The learning rate as a function of the step, and nothing else: a resumed run needs no scheduler state."""

import math

from hessprune.foundation.checks import check_range


def learning_rate(step: int, *, total_steps: int, peak: float, warmup_fraction: float = 0.0) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to zero.

    With W = round(warmup_fraction · total_steps), capped at total_steps − 1:
    `peak·(step + 1)/(W + 1)` while `step < W`, then `peak·½(1 + cos(π·(step − W)/(total_steps − W)))`.
    Step W runs at the peak; zero is reached one step after the last.

    Args:
        step: From 0; later steps than the last get the last one's rate.
        total_steps: Steps of the whole run, at least 1.
        peak: Highest rate.
        warmup_fraction: Share of steps in the warm-up, in [0, 1].

    Returns:
        The rate, positive for every step of the run.

    Raises:
        ArgumentError: A number is out of range.

    References:
        Loshchilov and Hutter (2017), SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983, Eq. 5.

    Example:
        >>> [round(learning_rate(step, total_steps=6, peak=1.0, warmup_fraction=1 / 3), 3) for step in range(6)]
        [0.333, 0.667, 1.0, 0.854, 0.5, 0.146]
    """
    check_range("step", step, low=0, integer=True)
    check_range("total_steps", total_steps, low=1, integer=True)
    step = min(step, total_steps - 1)
    warmup = min(round(warmup_fraction * total_steps), total_steps - 1)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup)))
