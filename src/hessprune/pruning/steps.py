"""Prune in steps: remove a little, compensate, look again.

Saliencies are local: they hold for small changes. Going to the budget in steps, each on the compensated model of the
step before, keeps them honest. Every step restarts surgery and compensation from the dense model, so errors do not add
up. Steps end at fixed shares of the dense cost, so that plans for several budgets share the way as far as they can.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.errors import BudgetError
from hessprune.foundation.checks import check_range
from hessprune.methods.scores import Settings
from hessprune.methods.table import saliency
from hessprune.methods.values import Saliency
from hessprune.planning.implants import Implant, as_implant
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan, plan_removing
from hessprune.planning.ranking import Ranking, removable
from hessprune.structure.groups import Group
from hessprune.structure.remaining import remaining_groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.compensation import refit

TRUST = 0.25
"""Share of a group's units that one step may remove: estimates hold for small changes."""
Remember = Callable[[Budget, Plan | None, Callable[[], Plan]], Plan]
"""Given where a step ends, the plan so far and what makes the next one, returns that: made now or before."""


def plan_stepwise(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    budget: Budget,
    *,
    example_inputs: Any,
    values: Saliency,
    step: float,
    settings: Settings | None = None,
    ranking: Ranking | None = None,
    implant: float | Implant = 0.0,
    remember: Remember | None = None,
) -> Plan:
    """Go to the budget in steps, saliencies measured anew on each compensated model.

    Args:
        model: The dense model; left untouched.
        groups: From `find_groups`.
        batches: Calibration data.
        budget: What may be left at the end; with `latency_ms`, its `target` is a latency table.
        example_inputs: The inputs for which MACs are counted.
        values: Saliencies of the dense model; their method is that of all steps.
        step: Share of the dense quantity that one step removes; 1 is `make_plan`.
        settings: Seed, estimator, precision and loss of the saliency.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.
        implant: Which units keep a stand-in, of those that leave in the last step.
        remember: To resume: may return the plan of a step as it was made before.

    Returns:
        The plan for the dense model.

    Raises:
        ArgumentError: `step` is not in (0, 1].
        BudgetError: The budget is out of reach.
    """
    check_range("step", step, low=1e-3, high=1)
    way = _Way(
        model=model,
        groups=groups,
        batches=batches,
        example_inputs=example_inputs,
        values=values,
        step=step,
        settings=settings,
        ranking=ranking or Ranking(),
        implant=as_implant(implant),
    )
    plan = None
    for limit, share in way.limits(budget) if step < 1 else [(budget, 0.0)]:

        def make(plan: Plan | None = plan, limit: Budget = limit, share: float = share) -> Plan:
            return way.go_on(plan, limit, share, last=limit == budget)

        plan = remember(limit, plan, make) if remember else make()
    assert plan is not None
    return plan


@dataclass(frozen=True, kw_only=True)
class _Way:
    """What all steps share."""

    model: nn.Module
    groups: Sequence[Group]
    batches: Any
    example_inputs: Any
    values: Saliency
    step: float
    settings: Settings | None
    ranking: Ranking
    implant: Implant

    def limits(self, budget: Budget) -> list[tuple[Budget, float]]:
        """Return where each step ends, as a budget and as a kept share: multiples of the step, and the budget itself.

        Raises:
            BudgetError: The budget is out of reach.
        """
        at_once = self._plan(self.model, self.groups, self.values, budget, self.ranking)
        quantity = budget.quantity
        if quantity == "units":
            total = sum(group.num_units for group in self.groups)
        elif budget.is_latency:
            total = at_once.provenance["latency"]["dense_ms"]
        else:
            total = getattr(at_once.cost_before, quantity)
        last = budget.limit(total) / total
        steps = max(math.ceil(round((1 - last) / self.step, 6)) - 1, 0)
        shares = [round(1 - self.step * (number + 1), 9) for number in range(steps)]
        return [*((Budget.keeping(quantity, share, budget.target), share) for share in shares), (budget, last)]

    def go_on(self, plan: Plan | None, limit: Budget, share: float, *, last: bool) -> Plan:
        """Return the plan of the step that ends at `limit`, after the plan of the steps before it."""
        removed = {group.name: () for group in self.groups} if plan is None else plan.removed
        spent = 1.0 if plan is None else plan.kept_fraction(limit.quantity)
        if plan is None and last:
            return self._plan(self.model, self.groups, self.values, limit)
        if spent <= share:
            return self._plan_removing(removed, limit, None)
        left, current = remaining_groups(self.groups, removed), self.model
        if plan is not None:
            current = refit(self.model, apply_plan(self.model, plan, check=False), plan, self.batches)
        fresh = self._measured(current, left)
        part = Budget.keeping(limit.quantity, math.floor(1e9 * share / spent) / 1e9, limit.target)  # of what is left
        if last and self.implant.share:
            more = self._plan(current, left, fresh, part, self._floored, self.implant)
        else:
            more = self._plan_within_trust(current, left, fresh, part)
        return self._plan_removing(removed, limit, more)

    def _measured(self, current: nn.Module, left: Sequence[Group]) -> Saliency:
        """Measure saliencies, unless they are known."""
        if current is self.model:
            return self.values
        return saliency(current, left, self.batches, self.values.provenance["method"], settings=self.settings)

    def _plan(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        values: Saliency,
        budget: Budget,
        ranking: Ranking | None = None,
        implant: Implant | None = None,
    ) -> Plan:
        return make_plan(
            model,
            groups,
            values,
            self._after_removal(budget, groups),
            example_inputs=self.example_inputs,
            ranking=ranking or self.ranking,
            implant=(self.implant if ranking is None else 0.0) if implant is None else implant,
        )

    def _after_removal(self, budget: Budget, groups: Sequence[Group]) -> Budget:
        """Return the budget with the table of the model that has these groups, which may have lost units before."""
        if not isinstance(budget.target, LatencyTable):
            return budget
        pairs = zip(self.groups, groups, strict=True)
        gone = {dense.name: dense.num_units - group.num_units for dense, group in pairs}
        return replace(budget, target=budget.target.after(gone))

    def _plan_within_trust(self, model: nn.Module, groups: Sequence[Group], values: Saliency, budget: Budget) -> Plan:
        """Plan one step, removing few units of each group if the budget can be met so."""
        floors = dict(self._floored.min_kept_units)
        near = {group.name: max(floors[group.name], math.ceil((1 - TRUST) * group.num_units)) for group in groups}
        try:
            trusted = replace(self._floored, min_kept_units=tuple(near.items()))
            return self._plan(model, groups, values, budget, trusted)
        except BudgetError:
            return self._plan(model, groups, values, budget, self._floored)

    @property
    def _floored(self) -> Ranking:
        """The ranking with its floors counted in units of the dense groups."""
        floors = ((group.name, group.num_units - removable(group, self.ranking)) for group in self.groups)
        return replace(self.ranking, min_kept_units=tuple(floors))

    def _plan_removing(self, removed: Mapping[str, Sequence[int]], limit: Budget, more: Plan | None) -> Plan:
        """Return the plan for the dense model that removes what is given and, of the rest, what `more` says."""
        names = {group.name: _not_in(removed[group.name], group) for group in self.groups}
        added = {name: () if more is None else more.removed[name] for name in names}
        implanted = {} if more is None else more.implanted
        return plan_removing(
            self.model,
            self.groups,
            {name: (*gone, *(names[name][unit] for unit in added[name])) for name, gone in removed.items()},
            limit,
            example_inputs=self.example_inputs,
            provenance={**self.values.provenance, "ranking": asdict(self.ranking), "step": self.step},
            implanted={name: [names[name][unit] for unit in units] for name, units in implanted.items()},
            stand_ins=None if more is None else more.stand_ins,
        )


def _not_in(removed: Sequence[int], group: Group) -> list[int]:
    gone = set(removed)
    return [unit for unit in range(group.num_units) if unit not in gone]
