"""The Hessian trace of each unit, by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.blocks import block_traces
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.results import Slices, TraceResult
from hessprune.curvature.stopping import Until
from hessprune.foundation.arrival import watched
from hessprune.methods.options import Estimator, Precision
from hessprune.methods.slices import producer_slices
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import ByGroup, Group


def hessian_trace(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    *,
    estimator: Estimator = "exact",
    loss_fn: Any = None,
    precision: Precision = "fp32",
    seed: int = 0,
    num_probes: int | None = None,
    until: Until | None = None,
    memory_limit: int | None = None,
) -> TraceResult:
    """Return the trace of the loss Hessian over the weights of each unit, `Tr(H_uu)`, summed over the unit's producers.

    The loss is the mean over samples; evaluation mode throughout. `exact` is a closed form (at most C backward passes
    for C classes), equal to the Hessian's for piecewise-linear networks and the generalised Gauss–Newton trace
    otherwise; `rademacher` needs one backward pass a draw; `hutchinson` is the published estimator, with the true
    Hessian.

    Args:
        model: Left untouched: mode, `requires_grad`, `.grad` and random state are restored.
        groups: From `find_groups`.
        batches: Re-iterable of `(inputs, targets)`.
        estimator: `"exact"`, `"rademacher"` or `"hutchinson"`.
        loss_fn: A loss of `(logits, targets)` that averages, or `"next_word"`; cross-entropy if None.
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

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 2)
        >>> trace = hp.hessian_trace(net, hp.find_groups(net, x), [(x, torch.zeros(8, dtype=torch.int64))])
        >>> trace.values["0"].shape, trace.kind
        (torch.Size([4]), 'hessian')
    """
    with watched(model) as plain:
        groups = check_groups(plain, groups)
        return traces_by_group(
            plain,
            groups,
            batches,
            producer_slices(plain, groups, hap_scale=False),
            estimator=estimator,
            loss_fn=loss_fn,
            precision=precision,
            seed=seed,
            options=TraceOptions(num_probes=num_probes, until=until, memory_limit=memory_limit),
        )


def traces_by_group(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    slices: Slices,
    *,
    estimator: str,
    loss_fn: Any,
    precision: str,
    seed: int,
    options: TraceOptions,
) -> TraceResult:
    """Return the traces over some slices, laid out over all groups; units that nothing produces have none."""
    if options.until is not None:  # the decision is one on all groups
        removed = options.until.removed
        until = replace(options.until, removed=lambda values: removed(_complete(values, groups)))
        options = replace(options, until=until)
    result = block_traces(
        model, slices, batches, estimator=estimator, loss_fn=loss_fn, precision=precision, seed=seed, options=options
    )
    error = result.standard_error
    return replace(
        result,
        values=_complete(result.values, groups),
        standard_error=None if error is None else _complete(error, groups),
    )


def _complete(values: Mapping[str, Tensor], groups: Sequence[Group]) -> ByGroup[Tensor]:
    """Return one tensor for each group, in order."""
    none = {group.name: torch.zeros(group.num_units, dtype=torch.float64, device="cpu") for group in groups}
    return ByGroup({name: values.get(name, zeros) for name, zeros in none.items()})
