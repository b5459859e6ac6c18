"""Selection for budgets of time. Time falls in steps, so a group goes from one width to the next that is faster."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import BudgetError
from hessprune.planning.ranking import Ranking, orders, out_of_reach, removable, rounding
from hessprune.structure.groups import Group

AHEAD = 4
"""Number of narrower widths of a group that are compared: a step may pay only together with the next one."""


def select_in_steps(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, *, budget: Budget, ranking: Ranking
) -> dict[str, tuple[int, ...]]:
    """Return the units to remove from each group, the least salient ones of each.

    Raises:
        BudgetError: Removing all that may go is not enough.
    """
    order = orders(groups, saliency)
    values = [saliency[group.name].numpy()[order[group.name]] for group in groups]
    gone = [0] * len(groups)

    def take(number: int, amount: int) -> None:
        gone[number] += amount

    counts = take_steps(
        groups,
        costs,
        budget=budget,
        ranking=ranking,
        losses=lambda number: values[number][gone[number] :].cumsum(),
        take=take,
    )
    return {name: tuple(sorted(ranked[: counts[name]].tolist())) for name, ranked in order.items()}


def take_steps(
    groups: Sequence[Group],
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    losses: Callable[[int], np.ndarray],
    take: Callable[[int, int], None],
) -> dict[str, int]:
    """Narrow groups, step by step, by the step with the least loss per time saved, until the budget is met.

    The last step, such as that of a residual stream, may overshoot. So steps are taken back while the budget allows it,
    the last ones first.

    Args:
        groups: All that may be narrowed.
        costs: With a latency table.
        budget: The bound.
        ranking: Floors, rounding, and whether loss is taken per time saved, or else per unit.
        losses: A function of a group's number: the loss of its next unit, of its next two, …, the cheapest first.
        take: Called with a group's number and the number of its next units that go.

    Returns:
        The number of units of each group that go in the end: the first ones of those that `take` received.

    Raises:
        BudgetError: Removing all that may go is not enough.
    """
    dense, counts, taken = costs.spent(budget.quantity), {group.name: 0 for group in groups}, []
    limit, stops = budget.limit(dense), _stops(groups, costs, budget, ranking)
    while (spent := costs.spent(budget.quantity, counts)) > limit:
        prices = []
        for number, group in enumerate(groups):
            further = [stop for stop in stops[number] if stop > counts[group.name]][:AHEAD]
            loss = losses(number) if further else np.zeros(0)
            for stop in further:
                amount = stop - counts[group.name]
                saved = spent - costs.spent(budget.quantity, counts | {group.name: stop})
                if saved > 0:
                    per = amount if ranking.per_cost is False else saved
                    prices.append((float(loss[amount - 1]) / per, number, stop))
        if not prices:
            raise BudgetError(out_of_reach(budget, spent, dense, ranking))
        _, number, stop = min(prices)
        take(number, stop - counts[groups[number].name])
        taken.append((groups[number].name, counts[groups[number].name]))
        counts[groups[number].name] = stop
    return _taken_back(counts, taken, costs, budget.quantity, limit)


def _stops(groups: Sequence[Group], costs: CostModel, budget: Budget, ranking: Ranking) -> list[list[int]]:
    """Return for each group the numbers of removed units at which it may stop, rising."""
    leaving = rounding(costs, budget, ranking)
    return [sorted({leaving(group, n) for n in range(removable(group, ranking) + 1)} - {0}) for group in groups]


def _taken_back(
    counts: dict[str, int], taken: Sequence[tuple[str, int]], costs: CostModel, quantity: str, limit: float
) -> dict[str, int]:
    """Take steps `(group, units gone before)` back within the limit, the last ones first."""
    stuck: set[str] = set()
    for name, before in reversed(taken):
        wider = counts | {name: before}
        if name not in stuck and costs.spent(quantity, wider) <= limit:
            counts = wider
        else:
            stuck.add(name)
    return counts
