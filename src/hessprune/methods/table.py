"""The methods by name, behind one signature."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hessprune.curvature.softening import softened
from hessprune.foundation.checks import check_batches, check_choice, check_finite_parameters
from hessprune.foundation.trees import leading_size
from hessprune.methods import baselines, gates
from hessprune.methods.hessian_trace import relative_hessian_trace
from hessprune.methods.repair import repaired
from hessprune.methods.scores import Scores, Settings
from hessprune.methods.values import Saliency
from hessprune.structure.groups import Group


def _hap(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    trace = relative_hessian_trace(model, groups, batches, settings)
    facts = {"estimator": trace.estimator, "precision": trace.precision, "kind": trace.kind}
    facts |= {"num_backwards": trace.num_backwards}
    if trace.settled is not None:
        facts |= {"num_probes": trace.num_probes, "settled": trace.settled}
    return Scores(values=trace.values, standard_error=trace.standard_error, facts=facts)


def _random(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:  # noqa: ARG001
    return Scores(values=baselines.random(groups, settings.seed))


def _magnitude(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:  # noqa: ARG001
    return Scores(values=baselines.magnitude(model, groups))


def _joint(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    # After a refit the effect of removals on the loss is measured; only without one does curvature stand for it.
    asked = 1.0 if settings.compensated and settings.temperature == "auto" else settings.temperature
    loss_fn, temperature = softened(model, batches, settings.loss_fn, temperature=asked)
    scores = (repaired if settings.compensated else gates.joint)(
        model, groups, batches, replace(settings, loss_fn=loss_fn)
    )
    return replace(scores, facts={**scores.facts, "temperature": round(temperature, 4)})


def _bn_scale(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:  # noqa: ARG001
    return Scores(values=baselines.bn_scale(model, groups))


METHODS: dict[str, Callable[[nn.Module, Sequence[Group], Any, Settings], Scores]] = {
    "random": _random,
    "magnitude": _magnitude,
    "bn_scale": _bn_scale,
    "taylor": gates.taylor,
    "hap": _hap,
    "sosp-h": gates.sosp_h,
    "sosp-i": gates.sosp_i,
    "joint": _joint,
}
COMPENSATING = {"joint"}
"""Methods whose answer depends on `Settings.compensated`."""
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
        method: `"hap"` (relative Hessian trace), `"sosp-h"`, `"sosp-i"`, `"joint"` (what is left to
            pay after a refit, or signed interactions without one), or one of the
            baselines `"taylor"`, `"bn_scale"`, `"magnitude"`, `"random"`.
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
    scores = METHODS[method](model, groups, batches, settings)
    facts = {"method": method, "seed": settings.seed, "num_samples": _num_samples(batches), **scores.facts}
    return Saliency(
        scores.values,
        provenance=facts,
        per_cost=method not in UNIFORM,
        standard_error=scores.standard_error,
        interactions=scores.interactions,
    )


def _num_samples(batches: Any) -> int:
    return sum(leading_size(inputs) for inputs, _ in batches)
