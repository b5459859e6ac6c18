"""Per-unit Hessian traces by any estimator."""

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.exact import exact_traces
from hessprune.curvature.hutchinson import hutchinson_probes
from hessprune.curvature.moments import Moments
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, pose
from hessprune.curvature.rademacher import rademacher_traces
from hessprune.curvature.results import Slices, TraceResult, probe_error
from hessprune.foundation.checks import check_choice, check_range
from hessprune.objectives.objective import check_weight

_log = logging.getLogger(__name__)


def block_traces(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    estimator: str = "exact",
    loss_fn: Any = None,
    precision: str = "fp32",
    seed: int = 0,
    options: TraceOptions | None = None,
) -> TraceResult:
    r"""Return the trace of the loss Hessian over the entries of each unit.

    `value_u = Σ_slices scale_u Tr(H_{index_u})`, where `H` is the Hessian of the mean loss over samples in evaluation
    mode. A copy of the model with folded BatchNorm runs; the traces refer to the model's own weights.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the slices of its `U` units.
        batches: Re-iterable of `(inputs, targets)`.
        estimator: `"exact"` (every column of the loss Hessian), `"rademacher"` (one backward pass per draw, unbiased)
            or `"hutchinson"` (HAP's, with the true Hessian).
        loss_fn: A loss of `(logits, targets)` that averages; None means cross-entropy.
        precision: `"fp32"`, `"bf16"`, `"fp16"` (not on a CPU) or `"fp64"`.
        seed: For the stochastic estimators.
        options: Memory, tolerance, number of probes, when to stop.

    Returns:
        The traces by key, `(U,)` in float64, with their errors.

    Raises:
        DataError: All targets are ignored by the loss.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature import ParamSlice, block_traces
        >>> model = nn.Linear(2, 3, bias=False)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> rows = ParamSlice(param="weight", dim=0, index=torch.arange(3)[:, None])
        >>> trace = block_traces(model, {"out": [rows]}, [(x, torch.tensor([0]))], precision="fp64")
        >>> p = model(x).double().softmax(1)[0]
        >>> torch.allclose(trace.values["out"], p * (1 - p) * 5)
        True
    """
    check_choice("estimator", estimator, ("exact", "rademacher", "hutchinson"))
    check_range("seed", seed, low=-(2**63), high=2**63 - 1, integer=True)
    options, started = options or TraceOptions(), time.perf_counter()
    effort = Effort(estimator=estimator, precision=precision, options=options)
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    run = {"exact": _exact, "rademacher": _rademacher, "hutchinson": _hutchinson}[estimator]
    result = run(problem, options, seed)
    check_weight(result.weight)
    if result.settled is False:
        _log.warning("%s has not settled within %d probes: raise `num_probes`", estimator, result.num_probes)
    return replace(
        result,
        kind="hessian" if estimator == "hutchinson" else problem.kind,
        estimator=estimator,
        precision=problem.precision.name,
        num_rejected=problem.precision.num_rejected,
        peak_bytes=problem.peak_bytes,
        seconds=time.perf_counter() - started,
    )


def _exact(problem: Problem, options: TraceOptions, seed: int) -> TraceResult:  # noqa: ARG001
    """Take every column once; the decision has then settled."""
    result = _read(problem, exact_traces(problem))
    return replace(result, settled=None if options.until is None else True)


def _rademacher(problem: Problem, options: TraceOptions, seed: int) -> TraceResult:
    """Take draws in rounds, until the decision has settled or there are no more."""
    rounds: list[Moments] = []
    moments, settled, taken = Moments.zeros(problem.readout.num_units), None, 0
    for draws in options.rounds("rademacher"):
        rounds.append(rademacher_traces(problem, draws, seed))
        moments, taken = Moments.average(rounds), taken + len(draws)
        settled = _has_settled(problem, options, moments.value, _draw_error(moments, taken))
        if settled:
            break
    error = problem.readout.split(_draw_error(moments, taken))
    return replace(_read(problem, moments), standard_error=error, num_probes=taken, settled=settled)


def _hutchinson(problem: Problem, options: TraceOptions, seed: int) -> TraceResult:
    """Take probes in rounds, until the decision has settled or there are no more."""
    sums, settled, moments = torch.zeros(0, problem.readout.num_units, dtype=torch.float64, device="cpu"), None, None
    for probes in options.rounds("hutchinson"):
        new, counted = hutchinson_probes(problem, probes, seed)
        sums = torch.cat([sums, new])
        moments = replace(counted, num_backwards=counted.num_backwards + (moments.num_backwards if moments else 0))
        moments.total = sums.mean(0)
        settled = _has_settled(problem, options, moments.value, probe_error(sums / moments.weight))
        if settled:
            break
    assert moments is not None, "there is at least one round"
    taken = sums / moments.weight
    return replace(
        _read(problem, moments),
        standard_error=problem.readout.split(probe_error(taken)),
        sample_error=None,
        num_probes=len(taken),
        settled=settled,
        probes=problem.readout.split(taken),
    )


def _draw_error(moments: Moments, draws: int) -> Tensor:
    """Return the error over draws; for a single draw the spread of the samples, which covers both."""
    return moments.draw_error if draws > 1 else moments.sample_error


def _has_settled(problem: Problem, options: TraceOptions, values: Tensor, errors: Tensor) -> bool | None:
    split = problem.readout.split
    return None if options.until is None else options.until.settled(split(values), split(errors))


def _read(problem: Problem, moments: Moments) -> TraceResult:
    """Turn sums into traces by key."""
    return TraceResult(
        values=problem.readout.split(moments.value),
        sample_error=problem.readout.split(moments.sample_error),
        num_samples=moments.num_samples,
        weight=moments.weight,
        num_backwards=moments.num_backwards,
        dropped_mass=moments.dropped / moments.mass if moments.mass else 0.0,
    )
