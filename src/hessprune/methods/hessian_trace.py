"""HAP: the relative Hessian trace of each unit, and the trace by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature import TraceOptions, TraceResult, Until, block_traces
from hessprune.methods.scores import Settings
from hessprune.methods.slices import producer_slices
from hessprune.structure.groups import ByGroup, Group


def hessian_trace(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    *,
    estimator: str = "exact",
    loss_fn: Any = None,
    precision: str = "fp32",
    seed: int = 0,
    num_probes: int | None = None,
    until: Until | None = None,
    memory_limit: int | None = None,
) -> TraceResult:
    """Trace of the loss Hessian over the weights of each unit, `Tr(H_uu)`, summed over the unit's producers.

    The loss is the mean over samples; evaluation mode throughout. `exact` is a closed form (at most C backward passes
    for C classes), equal to the Hessian's for piecewise-linear networks and the generalised Gauss–Newton trace
    otherwise; `rademacher` needs one backward pass a draw; `hutchinson` is the published estimator, with the true
    Hessian.

    Args:
        model: Left untouched: mode, `requires_grad`, `.grad` and random state are restored.
        groups: From `find_groups`.
        batches: Re-iterable of `(inputs, targets)`.
        estimator: `"exact"`, `"rademacher"` or `"hutchinson"`.
        loss_fn: A loss of `(logits, targets)` that averages; cross-entropy if None.
        precision: `"fp32"`, `"bf16"`, `"fp16"` (not on a CPU) or `"fp64"`.
        seed: For the stochastic estimators.
        num_probes: Draws of `rademacher` (4) or probes of `hutchinson` (300).
        until: Draw until this decision on the traces has settled instead, and say whether it has.
        memory_limit: Bytes for activations and gradients; samples are pushed through in chunks that fit.

    Returns:
        `.values` and `.standard_error` by group (float64), the number of backward passes, seconds, and whether the
        numbers are Hessian or Gauss–Newton traces (`.kind`).

    References:
        Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
        Chong, Gupta & Chen (2023), Resource Efficient Neural Networks Using Hessian Based Pruning, arXiv 2306.07030.
    """
    options = TraceOptions(num_probes=num_probes, until=until, memory_limit=memory_limit)
    settings = Settings(seed=seed, estimator=estimator, precision=precision, loss_fn=loss_fn, options=options)
    return _by_group(model, groups, batches, settings, hap_scale=False)


def relative_hessian_trace(
    model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings | None = None
) -> TraceResult:
    """HAP's saliency `s_u = Σ_producers Tr(H_uu) ‖w_u‖² / (2 numel(w_u))`, with its standard error.

    A unit's trace is spread evenly over its weights, so that `s_u` is the second-order loss increase `½ wᵀHw` of
    setting them to zero. Folding an evaluation-mode BatchNorm into the convolution before it leaves `s_u` unchanged.

    Args:
        model: Left untouched.
        groups: From `find_groups`.
        batches: Re-iterable of `(inputs, targets)`.
        settings: Estimator, precision, seed, loss and trace options.

    Returns:
        The saliencies in `.values`, `{group name: (U,)}`.

    References:
        Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
    """
    return _by_group(model, groups, batches, settings or Settings(), hap_scale=True)


def _by_group(
    model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings, *, hap_scale: bool
) -> TraceResult:
    options: TraceOptions | None = settings.options
    if options is not None and options.until is not None:  # the decision is one on all groups
        removed = options.until.removed
        until = replace(options.until, removed=lambda values: removed(_complete(dict(values), groups)))
        options = replace(options, until=until)
    result = block_traces(
        model,
        producer_slices(model, groups, hap_scale=hap_scale),
        batches,
        estimator=settings.estimator,
        loss_fn=settings.loss_fn,
        precision=settings.precision,
        seed=settings.seed,
        options=options,
    )
    error = result.standard_error
    return replace(
        result,
        values=_complete(result.values, groups),
        standard_error=None if error is None else _complete(error, groups),
    )


def _complete(values: dict[str, Tensor], groups: Sequence[Group]) -> ByGroup[Tensor]:
    """All groups in order; units that nothing produces (zero padding) have no curvature."""
    none = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in groups}
    return ByGroup({name: values.get(name, zeros) for name, zeros in none.items()})
