"""One global ranking: the least saliency per cost saved goes first, until the budget is met."""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import unit_step
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError
from hessprune.foundation.checks import check_range
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """How saliencies become decisions.

    Args:
        per_cost: Divide each saliency by what its unit saves of the budgeted quantity. What a saliency cannot know is
            that an early channel costs many times a late one. None follows the method's own habit.
        min_kept_fraction: Every group keeps at least this share of its units (and always one).
        round_to: Layers keep a multiple of this many channels, as kernels on real hardware like it.
        ignored_layers: Name patterns of groups that stay whole.
        min_kept_units: Floors of single groups, `(name, units)`, in place of the fraction.
    """

    per_cost: bool | None = None
    min_kept_fraction: float = 0.1
    round_to: int = 1
    ignored_layers: tuple[str, ...] = ()
    min_kept_units: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_range("min_kept_fraction", self.min_kept_fraction, low=0, high=1)
        check_range("round_to", self.round_to, low=1, integer=True)


def select(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, *, budget: Budget, ranking: Ranking
) -> dict[str, tuple[int, ...]]:
    """Return the units to remove from each group: the shortest prefix of the global ranking that meets the budget.

    Ties are broken by group and unit, so the result is deterministic. Takes O(U log U) and log₂ U calls of `costs`.

    Raises:
        BudgetError: Removing all that may go is not enough; the message says what is reachable.
    """
    limit = budget.limit(costs.spent(budget.quantity))
    order, leaving = _orders(groups, saliency), rounding(costs, budget, ranking)
    candidates = _candidates(groups, saliency, costs, budget, ranking)

    def removed(length: int) -> dict[str, int]:
        counts = np.bincount(candidates[:length], minlength=len(groups)).tolist()
        return {group.name: leaving(group, count) for group, count in zip(groups, counts, strict=True)}

    def spent(length: int) -> float:
        return costs.spent(budget.quantity, removed(length))

    low, high = 0, len(candidates)
    if spent(high) > limit:
        raise BudgetError(out_of_reach(budget, spent(high), costs.spent(budget.quantity), ranking))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if spent(middle) <= limit else (middle + 1, high)
    return {name: tuple(sorted(order[name][:count])) for name, count in removed(low).items()}


def _orders(groups: Sequence[Group], saliency: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Units of each group, least salient first."""
    return {group.name: np.argsort(saliency[group.name].numpy(), kind="stable").tolist() for group in groups}


def _candidates(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, budget: Budget, ranking: Ranking
) -> np.ndarray:
    """Group numbers of all units that may go, in the order in which they go."""
    saved = costs.saved_next(budget.quantity) if ranking.per_cost is not False else {}
    scores, owners = [], []
    for number, group in enumerate(groups):
        values = np.sort(saliency[group.name].numpy())[: removable(group, ranking)]
        scores.append(values / max(saved.get(group.name, 1.0), 1e-12))
        owners.append(np.full(len(values), number))
    return np.concatenate(owners)[np.argsort(np.concatenate(scores), kind="stable")]


def not_ignored(groups: Sequence[Group], patterns: Sequence[str]) -> list[Group]:
    """Return the groups that no pattern names."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(group.name, pattern) for group in groups):
            raise ArgumentError(f"`ignored_layers` must match group names, got {pattern!r}. See `find_groups`.")
    return [group for group in groups if not any(fnmatch.fnmatchcase(group.name, pattern) for pattern in patterns)]


def removable(group: Group, ranking: Ranking) -> int:
    """Return how many units of a group may go at most."""
    floor = math.ceil(ranking.min_kept_fraction * group.num_units - 1e-9)
    floor = max(1, dict(ranking.min_kept_units).get(group.name, floor))
    return max(group.num_units - floor, 0)


def rounding(costs: CostModel, budget: Budget, ranking: Ranking) -> Callable[[Group, int], int]:
    """Return how many units of a group go where so many are ranked: fewer, to keep a multiple of `round_to` channels.

    For a budget of time, groups also stop only at widths that are worth it.
    """
    return lambda group, num_ranked: costs.num_leaving(
        budget.quantity, group.name, num_ranked, unit_step(group, ranking.round_to)
    )


def out_of_reach(budget: Budget, reachable: float, dense: float, ranking: Ranking) -> str:
    """Say what is reachable."""
    least = math.ceil(1000 * reachable / dense) / 1000
    time = "; narrower layers do not measure as faster" if budget.is_latency else ""
    left = f"{budget.quantity} = {round(reachable, 3):,}"
    return (
        f"`{budget}` must be reachable, but removing every unit that may go leaves {left}, "
        f"{reachable / dense:.3f} of the dense model (min_kept_fraction={ranking.min_kept_fraction:g}, "
        f"round_to={ranking.round_to}{time}). Ask for at least {budget.quantity}={least:g}."
    )
