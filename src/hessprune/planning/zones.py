"""Three zones from one ranking: units leave the full zone for an implant, or for good, least loss per cost first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import BudgetError
from hessprune.planning.implants import Options
from hessprune.planning.ranking import Ranking, out_of_reach, removable, rounding
from hessprune.structure.groups import Group

KEPT, IMPLANTED, REMOVED = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Zones:
    """Units that go and units that keep a stand-in, by group name; all others stay whole."""

    removed: Mapping[str, tuple[int, ...]]
    implanted: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, groups: Sequence[Group], zones: Sequence[np.ndarray]) -> "Zones":
        """Read them off one array of zones for each group."""

        def units(wanted: int) -> dict[str, tuple[int, ...]]:
            pairs = zip(groups, zones, strict=True)
            return {group.name: tuple(np.flatnonzero(zone == wanted).tolist()) for group, zone in pairs}

        return cls(removed=units(REMOVED), implanted=units(IMPLANTED))

    def spent(self, costs: CostModel, quantity: str) -> float:
        """Return what is left of a cost."""
        counts = ({name: len(units) for name, units in zone.items()} for zone in (self.removed, self.implanted))
        return costs.spent(quantity, *counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Steps:
    """Steps of units into zones, in the order in which they are taken."""

    group: np.ndarray
    unit: np.ndarray
    zone: np.ndarray


def select_zones(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    options: Options,
) -> Zones:
    """Decide on three zones: the shortest prefix of the global order of steps that meets the budget.

    With `share="auto"` a unit has up to two steps, along the lower convex hull of its options (keep, implant, remove)
    over the cost that they save: all steps are taken in the order of loss per cost saved, which is optimal for the cost
    reached as far as costs add up. With a number, units are ranked for removal, and the last of them are implanted.

    Raises:
        BudgetError: Removing all that may go is not enough; the message says what is reachable.
    """
    limit = budget.limit(dense := costs.spent(budget.quantity))
    steps = _steps(groups, saliency, costs, budget=budget, ranking=ranking, options=options)
    leaving = rounding(costs, budget, ranking)

    def zones(length: int) -> Zones:
        return Zones.of(groups, _taken(groups, steps, length, options, leaving))

    low, high = 0, len(steps.unit)
    if (least := zones(high).spent(costs, budget.quantity)) > limit:
        raise BudgetError(out_of_reach(budget, least, dense, ranking))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if zones(middle).spent(costs, budget.quantity) <= limit else (middle + 1, high)
    return zones(low)


def _steps(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    options: Options,
) -> _Steps:
    """List all steps; a unit's implant comes before its removal also where both cost the same."""
    saved = costs.saved_next(budget.quantity) if ranking.per_cost is not False else {}
    scores, owners, units, zones = [], [], [], []
    for number, group in enumerate(groups):
        values = saliency[group.name].numpy()
        order = np.argsort(values, kind="stable")
        price = values[order] / max(saved.get(group.name, 1.0), 1e-12)
        for zone, score in _prices(price, group.name, order, options):
            worth = np.isfinite(score)
            scores.append(score[worth])
            units.append(order[worth])
            owners.append(np.full(worth.sum(), number))
            zones.append(np.full(worth.sum(), zone))
    rank = np.argsort(np.concatenate(scores), kind="stable")
    group, unit, zone = (np.concatenate(parts)[rank] for parts in (owners, units, zones))
    allowed = _allowed(group, unit, [removable(item, ranking) for item in groups])
    return _Steps(group=group[allowed], unit=unit[allowed], zone=zone[allowed])


def _allowed(group: np.ndarray, unit: np.ndarray, most: Sequence[int]) -> np.ndarray:
    """Return which steps can be taken: those of the first units of each group that want to leave, up to its floor."""
    leaving: list[set[int]] = [set() for _ in most]
    allowed = np.zeros(len(unit), dtype=bool)
    for step, (number, one) in enumerate(zip(group.tolist(), unit.tolist(), strict=True)):
        if one in leaving[number] or len(leaving[number]) < most[number]:
            leaving[number].add(one)
            allowed[step] = True
    return allowed


def _prices(price: np.ndarray, group: str, order: np.ndarray, options: Options) -> list[tuple[int, np.ndarray]]:
    """Loss per cost of each step into each zone, given that of removing; infinite for steps that are not taken."""
    if options.share != "auto" or group not in options.loss:
        return [(REMOVED, price)]
    loss, saving, worth = options.loss[group][order], options.saving[group], options.is_worth_it(group)[order]
    implanting = np.where(worth, price * loss / max(saving, 1e-12), np.inf)
    removing = np.where(worth, price * (1 - loss) / max(1 - saving, 1e-12), price)
    return [(IMPLANTED, implanting), (REMOVED, removing)]


def _taken(
    groups: Sequence[Group], steps: _Steps, length: int, options: Options, leaving: Callable[[Group, int], int]
) -> list[np.ndarray]:
    """Return the zones of all units after the first steps; what rounding gives back stays whole."""
    group, unit, zone = steps.group[:length], steps.unit[:length], steps.zone[:length].copy()
    able = np.isin(group, [number for number, item in enumerate(groups) if item.name in options.loss]).nonzero()[0]
    zone[able[len(able) - options.num_by_share(len(able)) :]] = IMPLANTED
    result = []
    for number, item in enumerate(groups):
        own = np.full(item.num_units, KEPT)
        mine = group == number
        own[unit[mine]] = zone[mine]  # of two steps the later one counts
        gone = unit[mine & (zone == REMOVED)]
        own[gone[leaving(item, len(gone)) :]] = KEPT
        result.append(own)
    return result
