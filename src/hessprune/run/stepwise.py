"""Prune in steps: remove a little, compensate, look again.

Saliencies are local: they hold for small changes. Going to the budget in steps, each on the compensated model of the
step before, keeps them honest. Every step restarts surgery and compensation from the dense model, so errors do not add
up.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hessprune._checks import check_range
from hessprune._progress import track
from hessprune.planning.budget import Budget
from hessprune.planning.cost import CostModel
from hessprune.planning.implants import Implant, Share, as_implant
from hessprune.planning.plan import Plan, make_plan, plan_removing
from hessprune.planning.ranking import Ranking, removable
from hessprune.saliency.implant_losses import implant_losses
from hessprune.saliency.methods import saliency
from hessprune.saliency.scores import Settings
from hessprune.saliency.values import Saliency
from hessprune.structure.groups import Group
from hessprune.structure.remaining import remaining_groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.compensation import compensate

NO_IMPLANT = Implant(share=0.0)


def plan_stepwise(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    budget: Budget,
    *,
    example_inputs: Any,
    method: str,
    steps: int,
    settings: Settings | None = None,
    ranking: Ranking | None = None,
    implant: Share | Implant = 0.0,
) -> tuple[Plan, Saliency]:
    """Decide in `steps` equal factors of the budget, saliencies measured anew on each compensated model.

    Args:
        model: The dense model; left untouched.
        groups: From `find_groups`.
        batches: Calibration data.
        budget: What may be left at the end.
        example_inputs: The inputs for which MACs are counted.
        method: Which saliency decides.
        steps: How often to look; 1 is `make_plan`.
        settings: Seed, estimator, precision and loss of the saliency.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.
        implant: Which units keep a stand-in, of those that leave in the last step.

    Returns:
        The plan for the dense model, and the saliencies of the dense model.
    """
    check_range("steps", steps, low=1, integer=True)
    ranking, total = ranking or Ranking(), CostModel(model, example_inputs, groups).spent(budget.quantity)
    floors = tuple((group.name, group.num_units - removable(group, ranking)) for group in groups)
    ranking = replace(ranking, min_kept_units=floors)
    removed: dict[str, tuple[int, ...]] = {group.name: () for group in groups}

    def decide(current: nn.Module, values: Saliency, limit: Budget, implant: Implant = NO_IMPLANT) -> Plan:
        """Go on from what is removed so far, down to `limit`."""
        left = remaining_groups(groups, removed)
        if implant.share == "auto":
            values = implant_losses(current, left, batches, values, rank=implant.rank)
        more = make_plan(current, left, values, limit, example_inputs=example_inputs, ranking=ranking, implant=implant)
        names = {group.name: _not_in(removed[group.name], group) for group in groups}
        for group in groups:
            removed[group.name] += tuple(names[group.name][unit] for unit in more.removed[group.name])
        return plan_removing(
            model,
            groups,
            removed,
            budget,
            example_inputs=example_inputs,
            provenance={**more.provenance, "steps": steps},
            implanted={name: [names[name][unit] for unit in units] for name, units in more.implanted.items()},
            stand_ins=more.stand_ins,
        )

    current, values = model, saliency(model, groups, batches, method, settings=settings)
    first = values
    for step in track(range(1, steps), "pruning steps"):
        plan = decide(current, values, _between(budget, total, step / steps))
        current = compensate(model, apply_plan(model, plan, check=False), plan, batches)
        values = saliency(current, remaining_groups(groups, removed), batches, method, settings=settings)
    return decide(current, values, budget, as_implant(implant)), first


def _not_in(removed: Sequence[int], group: Group) -> list[int]:
    gone = set(removed)
    return [unit for unit in range(group.num_units) if unit not in gone]


def _between(budget: Budget, total: int, share: float) -> Budget:
    """Return the absolute budget after a share of the way, in equal factors."""
    return Budget(**{budget.quantity: int(total * (budget.limit(total) / total) ** share)})
