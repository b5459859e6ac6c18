"""The reach of a budget: whether a structure can meet it, before anything is measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import BudgetError
from hessprune.planning.ranking import Ranking, check_ranking, counting, free_groups, out_of_reach, removable, rounding
from hessprune.structure.groups import Group


def check_reachable(
    model: nn.Module, groups: Sequence[Group], budget: Budget, ranking: Ranking, example_inputs: Any
) -> None:
    """Raise where a budget is missed even without all units that may go; budgets of time need a measurement.

    Args:
        model: The dense model, with any weights.
        groups: From `find_groups`, without ignored layers.
        budget: The bound.
        ranking: Floors and rounding.
        example_inputs: The inputs for which MACs are counted.

    Raises:
        BudgetError: The budget is out of reach.
        ArgumentError: A floor is of a group that does not exist.
    """
    ranking = check_ranking(ranking, groups)
    if budget.is_latency:
        return
    costs = CostModel(model, example_inputs, groups)
    dense, least = costs.spent(budget.quantity), least_left(costs, groups, budget, ranking)
    if least > budget.limit(dense):
        raise BudgetError(out_of_reach(budget, least, dense, ranking))


def least_left(costs: CostModel, groups: Sequence[Group], budget: Budget, ranking: Ranking) -> float:
    """Return what is left of the budgeted quantity without all units that may go.

    Raises:
        ArgumentError: A floor is of a group that does not exist.
    """
    ranking = replace(check_ranking(ranking, groups), ignore=())  # `find_groups` has left these out
    free, leaving = counting(free_groups(groups, ranking), costs, budget), rounding(costs, budget, ranking)
    return costs.spent(budget.quantity, {group.name: leaving(group, removable(group, ranking)) for group in free})
