"""`block_traces`: one function for every estimator of per-unit Hessian traces."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hessprune._checks import check_choice, check_range
from hessprune._state import borrowed
from hessprune.curvature.exact import exact_traces
from hessprune.curvature.problem import pose
from hessprune.curvature.results import ParamSlice, Slices, TraceResult  # noqa: F401 - the example needs ParamSlice
from hessprune.curvature.risk import LossFn

_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
_TOLERANCE = {torch.float32: 1e-6, torch.float64: 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceOptions:
    """How to compute a trace, beyond what to compute."""

    tolerance: float | None = None
    """Share of the loss curvature in the logits that `exact` may leave out; None: nothing in fp64, 1e-6 otherwise."""
    chunk_size: int | None = None
    """Samples that are pushed through the model at once; None: as many as the processor's cache holds."""

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            check_range("tolerance", self.tolerance, low=0, high=1)
        if self.chunk_size is not None:
            check_range("chunk_size", self.chunk_size, low=1, integer=True)


def block_traces(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    estimator: str = "exact",
    loss_fn: LossFn | None = None,
    precision: str = "fp32",
    seed: int = 0,  # noqa: ARG001
    options: TraceOptions | None = None,
) -> TraceResult:
    r"""Trace of the loss Hessian over the entries of each unit, `value_u = Σ_slices scale_u Tr(H_{index_u})`.

    The loss is the mean over samples; evaluation mode throughout; traces refer to the model's own weights, though a
    folded copy is what runs.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the slices that its `U` units consist of.
        batches: Re-iterable of `(inputs, targets)`.
        estimator: `"exact"`.
        loss_fn: A loss of `(logits, targets)` that averages; None means cross-entropy.
        precision: `"fp32"` or `"fp64"`.
        seed: For the stochastic estimators.
        options: Memory, tolerance, number of probes, when to stop.

    Returns:
        The traces by key, `(U,)` in float64, with their errors.

    Example:
        >>> model = nn.Linear(2, 3, bias=False)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> rows = ParamSlice(param="weight", dim=0, index=torch.arange(3)[:, None])
        >>> trace = block_traces(model, {"out": [rows]}, [(x, torch.tensor([0]))], precision="fp64")
        >>> p = model(x).softmax(1)[0].double()
        >>> torch.allclose(trace.values["out"], p * (1 - p) * 5)
        True
    """
    check_choice("estimator", estimator, ("exact",))
    check_choice("precision", precision, _DTYPES)
    options, started = options or TraceOptions(), time.perf_counter()
    dtype = _DTYPES[precision]
    with borrowed(model):
        problem = pose(model, slices, batches, loss_fn=loss_fn, dtype=dtype, chunk_size=options.chunk_size)
    tolerance = _TOLERANCE[dtype] if options.tolerance is None else options.tolerance
    moments, backwards, dropped = exact_traces(problem, tolerance)
    return TraceResult(
        values=problem.want.split(moments.value),
        sample_error=problem.want.split(moments.sample_error),
        kind=problem.kind,
        estimator=estimator,
        precision=precision,
        num_samples=moments.num_samples,
        weight=moments.weight,
        num_backwards=backwards,
        dropped_mass=dropped,
        seconds=time.perf_counter() - started,
    )
