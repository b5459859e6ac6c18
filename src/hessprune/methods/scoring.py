"""`hp.saliency`: every method behind one signature."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, NumericalError
from hessprune.foundation.arrival import watched
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches, check_finite_parameters, check_range
from hessprune.foundation.processes import check_same, check_same_content, check_same_work, num_processes
from hessprune.foundation.sharded import is_sharded, lent_as_sharded
from hessprune.foundation.symmetric import as_symmetric
from hessprune.layers.input_moments import InputMoments
from hessprune.methods.experts import experts_apart
from hessprune.methods.method import Method, Scores, Scoring
from hessprune.methods.reach import sampled_groups, unseen_groups
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.objectives.choice import Chosen, choose_objective
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import Group

HIGHEST_SEED = 2**63 - 1


def saliency(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    method: str | Method = "hap",
    *,
    loss_fn: Any = None,
    outputs: Chosen = None,
    seed: int = 0,
) -> Saliency:
    """Estimate the increase of the loss when each unit is removed.

    Cost: that of the method, from no data at all (`magnitude`) to some forward and backward passes over the batches.

    Args:
        model: Left untouched, as are torch's random generators.
        groups: From `find_groups`.
        batches: Calibration data, a re-iterable of inputs, of `(inputs, targets)`, or of mappings with labels inside; a
            few hundred samples are enough.
        method: A method by value, such as `hp.HAP(estimator="rademacher")`, or as text, such as `"hap"`.
        loss_fn: A loss of `(output, targets)` that averages over samples, or `"next_word"`. Without one, `joint`
            compares outputs with those of the dense model; other methods take cross-entropy where there are labels.
        outputs: Names of the outputs that are compared, or weights by name; all of them if None.
        seed: For methods that draw at random and have no seed of their own.

    Returns:
        `{group name: (U,)}` in float64, with its provenance and, for stochastic estimators, standard errors.

    Raises:
        ArgumentError: The method is unknown, a seed is out of range, or the method's own seed differs from `seed`.
        DataError: `batches` is a one-shot generator or empty.
        NumericalError: Weights are not finite, or the loss depends on no group.

    Example:
        >>> import torch, hessprune as hp
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 2)
        >>> batches = [(x, torch.arange(8) % 2)]
        >>> hp.saliency(net, hp.find_groups(net, x), batches, hp.HAP(precision="fp64"))["0"].shape
        torch.Size([4])
    """
    method = as_method(method)
    check_seed(seed, method)
    if is_sharded(model):
        _check_sharded(method)
    with lent_as_sharded(model) if is_sharded(model) else watched(model) as plain:
        batches = Rereadable.of(batches, plain)
        return scored(plain, groups, batches, method, loss_fn=loss_fn, outputs=outputs, seed=seed)


def scored(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Rereadable,
    method: Method,
    *,
    loss_fn: Any,
    outputs: Chosen,
    seed: int,
    moments: dict[str, InputMoments] | None = None,
) -> Saliency:
    """Score the units of a plain model; `moments` receives those that a method measures anyway.

    Raises:
        DataError: `batches` is a one-shot generator or empty.
        NumericalError: Weights are not finite, or the loss depends on no group.
    """
    check_batches(batches)
    check_finite_parameters(model)
    check_same(batches, "batches")
    if num_processes() > 1:
        batches.hashed()
        if not is_sharded(model):
            check_same_work(model, {"method": method, "seed": seed, "outputs": outputs})
    groups = check_groups(model, groups, some=True)
    objective = None
    if method.needs is not None:
        objective = choose_objective(
            model, batches, loss_fn, outputs=outputs, prefer=method.needs, asker=f"{method.name!r}"
        )
    with (
        nullcontext([*groups])
        if objective is None or is_sharded(model)
        else experts_apart(model, groups, batches) as apart
    ):
        scores, seen, unseen = _scores_of_seen(
            Scoring(model=model, groups=apart, batches=batches, loss_fn=objective, seed=seed, moments=moments), method
        )
    check_same_content(batches.sha256, "batches")
    if unseen:
        scores = _with_unseen(scores, groups, seen)
    check_not_all_zero(scores.values, method)
    facts = {"method": method.name, "options": str(method), "seed": seed, "num_samples": batches.num_samples}
    return Saliency(
        scores.values,
        provenance={
            **facts,
            **({} if objective is None else objective.facts()),
            **scores.facts,
            **({"unseen": unseen} if unseen else {}),
        },
        per_cost=method.per_cost,
        standard_error=scores.standard_error,
        interactions=scores.interactions,
    )


def _scores_of_seen(scoring: Scoring, method: Method) -> tuple[Scores, list[Group], list[str]]:
    """Score the groups that the objective sees; return them, too, and the names of the others."""
    model, groups, objective = scoring.model, scoring.groups, scoring.loss_fn
    sampled, unseen = [*groups], []
    if objective is not None and not is_sharded(model):
        sampled = sampled_groups(model, groups, scoring.batches, tables=method.scores_tables)
        unseen = unseen_groups(model, groups, scoring.batches, objective)
        unseen += sorted({group.name for group in groups} - {group.name for group in sampled} - {*unseen})
    if len(unseen) == len(groups):
        raise NumericalError(
            f"the loss must depend on a group at least, got none that a gradient of single samples reaches through "
            f"convolutions and linear maps: {', '.join(unseen[:5])}. Take `no_grad` and `detach` out of the forward, "
            "call layers instead of multiplying by their weights, or use method='magnitude'."
        )
    seen = [group for group in sampled if group.name not in unseen]
    return method.score(replace(scoring, groups=seen)), seen, unseen


def _check_sharded(method: Method) -> None:
    """Raise if a method cannot score models whose parameters are spread over processes.

    Raises:
        ArgumentError: It cannot.
    """
    reason = method.needs_whole()
    if reason is not None:
        raise ArgumentError(
            f"`method` must score with ordinary backward passes where fully_shard spreads the model, got {method}, "
            f"which {reason}. Use method='taylor', 'hap' or 'sosp-i'."
        )


def _with_unseen(scores: Scores, groups: Sequence[Group], seen: Sequence[Group]) -> Scores:
    """Lay scores out over all groups; units that the loss does not see are worth as much as the best of the others."""
    best = max(float(scores.values[group.name].max()) for group in seen)
    whole = {group.name: torch.full((group.num_units,), best, dtype=torch.float64, device="cpu") for group in groups}
    names = {group.name for group in seen}
    interactions = scores.interactions
    if interactions is not None:
        owned = torch.cat([torch.full((group.num_units,), group.name in names, device="cpu") for group in groups])
        interactions = as_symmetric(interactions).spread(owned).simplest()
    error = scores.standard_error
    if error is not None:
        error = {name: error.get(name, torch.zeros_like(values)) for name, values in whole.items()}
    return replace(scores, values={**whole, **dict(scores.values)}, standard_error=error, interactions=interactions)


def check_not_all_zero(values: Mapping[str, Tensor], method: Method) -> None:
    """Raise if a method says that nothing is worth anything.

    Raises:
        NumericalError: All saliencies are zero.
    """
    if values and not any(bool(units.any()) for units in values.values()):
        reason = (
            "all weights that it reads are zero. Load a checkpoint that was trained."
            if method.needs is None
            else "at these weights and samples the loss has no curvature and no gradient, or all weights are zero. "
            "Give other samples, leave `loss_fn` out, or use method='magnitude'."
        )
        raise NumericalError(f"saliencies by {method.name!r} must differ from zero, got only zeros: {reason}")


def check_seed(seed: int, method: Method) -> None:
    """Raise unless a seed is in range and does not contradict the method's own.

    Raises:
        ArgumentError: The seed is out of range, or the method has another one.
    """
    check_range("seed", seed, low=0, high=HIGHEST_SEED, integer=True)
    own = getattr(method, "seed", None)
    if own is not None and seed not in (0, own):
        raise ArgumentError(f"`seed` must be that of `method`, got {seed} beside {method}. Give one of them.")
