"""Budgets of time: layers are timed, and the table is corrected on the models that are planned with it."""

from collections.abc import Callable
from dataclasses import replace

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.target import LatencyTarget
from hessprune.foundation.processes import by_the_first
from hessprune.latency.table import latency_table, settled
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan
from hessprune.pruning.task import Task


def with_latency_table(task: Task, values: Saliency) -> Task:
    """Return the task with a table in its budget that predicts the plan; a task of another budget as it is."""
    if not task.budget.is_latency:
        return task
    settings = task.planning_settings(task.budget, last=False)
    table = _measured(task)
    corrected = task.memory.table(settings, lambda: _corrected(task, values, table))
    return replace(task, budget=replace(task.budget, target=corrected))


def _measured(task: Task) -> LatencyTable:
    """Return the table given with the budget, or measure one for its target."""
    if isinstance(task.budget.target, LatencyTable):
        return task.budget.target
    target = task.budget.target or LatencyTarget()
    return task.memory.table(
        {"target": task.target_settings(task.budget)},
        lambda: _by_the_first(lambda: latency_table(task.model, task.groups, task.example_inputs, target)),
    )


def _by_the_first(make: Callable[[], LatencyTable]) -> LatencyTable:
    """Return one table on all processes: each would measure another one."""
    return LatencyTable.from_json(by_the_first(lambda: make().to_json()))


def _corrected(task: Task, values: Saliency, table: LatencyTable) -> LatencyTable:
    def plan_with(candidate: LatencyTable) -> Plan:
        budget: Budget = replace(task.budget, target=candidate)
        ranking = replace(task.ranking, step=1.0, ignore=())  # ignored layers have no group
        return make_plan(task.model, task.groups, values, budget, example_inputs=task.example_inputs, ranking=ranking)

    return _by_the_first(lambda: settled(table, task.model, task.example_inputs, plan_with))
