"""Pruning in steps: remove a little, compensate, measure the saliencies anew.

Saliencies are local: they hold for small changes. Each step is judged on the compensated model of the step before, and
restarts surgery and compensation from the dense model, so that errors do not add up. Steps end at fixed shares of the
dense cost, so that plans for several budgets share the steps that they have in common.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.errors import BudgetError
from hessprune.foundation.processes import by_the_first
from hessprune.latency.table import with_measured_latency
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan, plan_removing
from hessprune.planning.ranking import Ranking, removable
from hessprune.pruning.task import Task
from hessprune.structure.groups import Group
from hessprune.structure.remaining import remaining_groups
from hessprune.surgery.apply import without_units
from hessprune.surgery.compensation import refit
from hessprune.surgery.sequential import refit_by_block

TRUST = 0.25
"""Share of a group's units that one step may remove: estimates hold for small changes."""
Score = Callable[[Task, nn.Module, Sequence[Group]], Saliency]
"""Measures the saliencies of a model's units as a task says."""


def plan_in_steps(task: Task, values: Saliency, score: Score) -> Plan:
    """Return the plan for a task's budget, made at once or in steps of `task.ranking.step`.

    Args:
        task: Model, groups, data, budget and method. A budget of time carries a latency table.
        values: The saliencies of its groups.
        score: Measures saliencies between steps.

    Returns:
        The plan for the dense model; each step's plan is remembered.

    Raises:
        BudgetError: The budget is out of reach.
    """
    path = _Path(task=task, values=values, score=score)
    plan = None
    for limit, share in path.limits():
        plan = path.remembered(plan, limit, share)
    assert plan is not None, "there is at least one step"
    return plan


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The steps of one task."""

    task: Task
    values: Saliency
    score: Score

    def limits(self) -> list[tuple[Budget, float]]:
        """Return the ends of the steps, each as a budget and as a kept share: multiples of the step, then the budget.

        Raises:
            BudgetError: The budget is out of reach.
        """
        budget, step = self.task.budget, self.task.ranking.step
        if step == 1:
            return [(budget, 0.0)]
        dense = self._dense_cost(budget)
        last = budget.limit(dense) / dense
        count = max(math.ceil(round((1 - last) / step, 6)) - 1, 0)
        shares = [round(1 - step * (number + 1), 9) for number in range(count)]
        return [*((_at_share(budget, share), share) for share in shares), (budget, last)]

    def _dense_cost(self, budget: Budget) -> float:
        if budget.quantity == "units":
            return sum(group.num_units for group in self.task.groups)
        at_once = self._plan(self.task.model, self.task.groups, self.values, budget, self.task.ranking)
        if budget.is_latency:
            return at_once.provenance["latency"]["dense_ms"]
        return getattr(at_once.cost_before, budget.quantity)

    def remembered(self, plan: Plan | None, limit: Budget, share: float) -> Plan:
        """Return the plan of the step that ends at `limit`, made now or before."""
        last = limit == self.task.budget
        settings = self.task.planning_settings(limit, last=last)

        def make() -> Plan:
            made = self._next(plan, limit, share, last=last)
            timed = last and limit.is_latency
            return self._timed(made) if timed else made

        return self.task.memory.plan(settings, make)

    def _timed(self, plan: Plan) -> Plan:
        """Return the plan with its measured latency, one for all processes."""
        task = self.task
        text = by_the_first(lambda: with_measured_latency(plan, task.model, task.example_inputs).to_json())
        return Plan.from_json(text)

    def _next(self, plan: Plan | None, limit: Budget, share: float, *, last: bool) -> Plan:
        """Return the plan of the step that ends at `limit`, after the plan of the steps before it."""
        if plan is None and last:
            return self._plan(self.task.model, self.task.groups, self.values, limit, self.task.ranking, implant=True)
        removed = {group.name: () for group in self.task.groups} if plan is None else plan.removed
        spent = 1.0 if plan is None else plan.kept_fraction(limit.quantity)
        if spent <= share:
            return self._plan_removing(removed, limit, None)
        remaining, model, values = remaining_groups(self.task.groups, removed), self.task.model, self.values
        if plan is not None:
            pruned = without_units(self.task.model, plan)
            again = refit if self.task.sequential is False else refit_by_block
            model = again(self.task.model, pruned, plan, self.task.batches)
            values = self.score(self.task, model, remaining)
        part = self._budget_of(remaining, _at_share(limit, math.floor(1e9 * share / spent) / 1e9))  # of what is left
        if last and self.task.implant:
            more = self._plan(model, remaining, values, part, self._floored, implant=True)
        else:
            more = self._plan_within_trust(model, remaining, values, part)
        return self._plan_removing(removed, limit, more)

    def _plan(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        values: Saliency,
        budget: Budget,
        ranking: Ranking,
        *,
        implant: bool = False,
    ) -> Plan:
        return make_plan(
            model,
            groups,
            values,
            budget,
            example_inputs=self.task.example_inputs,
            ranking=replace(ranking, step=1.0, ignore=()),
            implant=self.task.implant if implant else 0.0,
        )

    def _budget_of(self, groups: Sequence[Group], budget: Budget) -> Budget:
        """Return a budget whose latency table, if any, is that of a model that has lost units before."""
        if not isinstance(budget.target, LatencyTable):
            return budget
        pairs = zip(self.task.groups, groups, strict=True)
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
        ranking = self.task.ranking
        floors = ((group.name, group.num_units - removable(group, ranking)) for group in self.task.groups)
        return replace(ranking, min_kept_units=tuple(floors))

    def _plan_removing(self, removed: Mapping[str, Sequence[int]], limit: Budget, more: Plan | None) -> Plan:
        """Return the plan for the dense model that removes the units in `removed` and, of the rest, those in `more`."""
        names = {group.name: _not_in(removed[group.name], group) for group in self.task.groups}
        added = {name: () if more is None else more.removed[name] for name in names}
        implanted: Mapping[str, Any] = {} if more is None else more.implanted
        ranking = self.task.ranking.to_json()
        return plan_removing(
            self.task.model,
            self.task.groups,
            {name: (*gone, *(names[name][unit] for unit in added[name])) for name, gone in removed.items()},
            limit,
            example_inputs=self.task.example_inputs,
            provenance={**self.values.provenance, "ranking": ranking, "step": self.task.ranking.step},
            implanted={name: [names[name][unit] for unit in units] for name, units in implanted.items()},
            stand_ins=None if more is None else more.stand_ins,
        )


def _at_share(budget: Budget, share: float) -> Budget:
    return Budget.keeping(budget.quantity, share, budget.target)


def _not_in(removed: Sequence[int], group: Group) -> list[int]:
    gone = set(removed)
    return [unit for unit in range(group.num_units) if unit not in gone]
