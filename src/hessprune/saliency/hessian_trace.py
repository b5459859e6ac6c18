"""HAP: the relative Hessian trace of each unit, and the trace by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature import TraceResult, block_traces
from hessprune.saliency.slices import producer_slices
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
) -> TraceResult:
    """Trace of the loss Hessian over the weights of each unit, `Tr(H_uu)`, summed over the unit's producers.

    The loss is the mean over samples; evaluation mode throughout. `exact` is a closed form (C backward passes for C
    classes), equal to the Hessian's for piecewise-linear networks and the generalised Gauss–Newton trace otherwise;
    `rademacher` needs one backward pass a draw; `hutchinson` is the published estimator.

    Args:
        model: Left untouched: mode, `requires_grad`, `.grad` and random state are restored.
        groups: From `find_groups`.
        batches: Re-iterable of `(inputs, targets)`.
        estimator: `"exact"`, `"rademacher"` or `"hutchinson"`.
        loss_fn: Cross-entropy if None.
        precision: `"fp32"`, `"bf16"`, `"fp16"` or `"fp64"`.
        seed: For the stochastic estimators.

    Returns:
        `.values` and `.standard_error` by group (float64), the number of backward passes, seconds, and whether the
        numbers are Hessian or Gauss–Newton traces.

    References:
        Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
    """
    return _by_group(model, groups, batches, estimator, loss_fn, precision, seed, hap_scale=False)


def relative_hessian_trace(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    *,
    estimator: str = "exact",
    loss_fn: Any = None,
    precision: str = "fp32",
    seed: int = 0,
) -> TraceResult:
    """HAP's saliency `s_u = Σ_producers Tr(H_uu) ‖w_u‖² / (2 numel(w_u))`, with its standard error.

    A unit's trace is spread evenly over its weights, so that `s_u` is the second-order loss increase `½ wᵀHw` of
    setting them to zero. Folding an evaluation-mode BatchNorm into the convolution before it leaves `s_u` unchanged.

    Arguments as in `hessian_trace`.

    References:
        Yu et al. (2022), Hessian-Aware Pruning and Optimal Neural Implant, arXiv 2101.08940.
    """
    return _by_group(model, groups, batches, estimator, loss_fn, precision, seed, hap_scale=True)


def _by_group(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    estimator: str,
    loss_fn: Any,
    precision: str,
    seed: int,
    *,
    hap_scale: bool,
) -> TraceResult:
    slices = producer_slices(model, groups, hap_scale=hap_scale)
    result = block_traces(model, slices, batches, estimator=estimator, loss_fn=loss_fn, precision=precision, seed=seed)
    return replace(
        result,
        values=_complete(result.values, groups),
        standard_error=None if result.standard_error is None else _complete(result.standard_error, groups),
    )


def _complete(values: dict[str, Tensor], groups: Sequence[Group]) -> ByGroup[Tensor]:
    """All groups in order; units that nothing produces (zero padding) have no curvature."""
    none = {group.name: torch.zeros(group.num_units, dtype=torch.float64) for group in groups}
    return ByGroup({name: values.get(name, zeros) for name, zeros in none.items()})
