"""The methods by name, behind one signature."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hessprune._checks import check_batches, check_choice, check_finite_parameters, leading_size
from hessprune.saliency import baselines
from hessprune.saliency.hessian_trace import relative_hessian_trace
from hessprune.saliency.values import Saliency
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a method may depend on besides model, groups and data."""

    seed: int = 0
    estimator: str = "exact"
    precision: str = "fp32"
    loss_fn: Any = None


Scores = tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None, Mapping[str, Any]]
"""Saliencies, their standard errors if any, and what else belongs in the provenance."""


def _hap(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    trace = relative_hessian_trace(
        model,
        groups,
        batches,
        estimator=settings.estimator,
        loss_fn=settings.loss_fn,
        precision=settings.precision,
        seed=settings.seed,
    )
    facts = {"estimator": trace.estimator, "precision": trace.precision, "kind": trace.kind}
    return trace.values, trace.standard_error, facts | {"num_backwards": trace.num_backwards}


def _random(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:  # noqa: ARG001
    return baselines.random(groups, settings.seed), None, {}


def _magnitude(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:  # noqa: ARG001
    return baselines.magnitude(model, groups), None, {}


METHODS: dict[str, Callable[[nn.Module, Sequence[Group], Any, Settings], Scores]] = {
    "hap": _hap,
    "magnitude": _magnitude,
    "random": _random,
}
UNIFORM = {"random"}
"""Methods that spread removals evenly over layers by themselves: their ranking is not taken per cost."""


def saliency(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    method: str = "hap",
    *,
    settings: Settings | None = None,
) -> Saliency:
    """Estimate by how much the loss rises when each unit is removed.

    Args:
        model: Left untouched.
        groups: From `find_groups`.
        batches: Calibration data, a re-iterable of `(inputs, targets)`; a few hundred samples are enough.
        method: `"hap"` (relative Hessian trace), `"magnitude"` or `"random"`.
        settings: Seed, estimator, precision and loss.

    Returns:
        `{group name: (U,)}` in float64, with its provenance and, for stochastic estimators, standard errors.

    Raises:
        ArgumentError: The method is unknown.
        DataError: `batches` is a one-shot generator or empty.
        NumericalError: Weights are not finite.
    """
    check_choice("method", method, METHODS)
    check_batches(batches)
    check_finite_parameters(model)
    settings = settings or Settings()
    values, errors, facts = METHODS[method](model, groups, batches, settings)
    provenance = {"method": method, "seed": settings.seed, "num_samples": _num_samples(batches), **facts}
    return Saliency(values, provenance=provenance, per_cost=method not in UNIFORM, standard_error=errors)


def _num_samples(batches: Any) -> int:
    return sum(leading_size(inputs) for inputs, _ in batches)
