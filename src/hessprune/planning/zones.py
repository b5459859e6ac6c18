"""Three zones from one ranking: units stay whole, keep a stand-in, or go, the least saliency per cost first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.planning.implants import ImplantShare
from hessprune.planning.ranking import Ranking, candidate_groups, orders, rounding, shortest_prefix
from hessprune.structure.groups import Group

KEPT, IMPLANTED, REMOVED = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Zones:
    """The removed and the implanted units by group name; all others stay whole."""

    removed: Mapping[str, tuple[int, ...]]
    implanted: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, groups: Sequence[Group], zones: Sequence[np.ndarray]) -> "Zones":
        """Return the zones of all groups from one array `(U,)` of zones for each."""

        def units(number: int) -> dict[str, tuple[int, ...]]:
            pairs = zip(groups, zones, strict=True)
            return {group.name: tuple(np.flatnonzero(zone == number).tolist()) for group, zone in pairs}

        return cls(removed=units(REMOVED), implanted=units(IMPLANTED))

    def spent(self, costs: CostModel, quantity: str) -> float:
        """Return the cost that is left, in one quantity."""
        counts = ({name: len(units) for name, units in zone.items()} for zone in (self.removed, self.implanted))
        return costs.spent(quantity, *counts)


def select_zones(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    implants: ImplantShare,
) -> Zones:
    """Return the zones for the shortest prefix of the global ranking that meets the budget.

    The units of the prefix leave the full zone. Of those that can hold a stand-in, the last ones are implanted.

    Raises:
        BudgetError: Removing all that may go is not enough; the message says what is reachable.
    """
    order, leaving = orders(groups, saliency), rounding(costs, budget, ranking)
    candidates = candidate_groups(groups, saliency, costs, budget, ranking)
    able = np.isin(candidates, [number for number, group in enumerate(groups) if group.name in implants.groups])

    def zones(length: int) -> Zones:
        taken, carrying = candidates[:length], np.flatnonzero(able[:length])
        zone = np.full(length, REMOVED)
        zone[carrying[len(carrying) - implants.number(len(carrying)) :]] = IMPLANTED
        parts = []
        for number, group in enumerate(groups):
            part, mine = np.full(group.num_units, KEPT), zone[taken == number]
            units = order[group.name][: len(mine)]
            part[units] = mine
            gone = units[mine == REMOVED]
            part[gone[leaving(group, len(gone)) :]] = KEPT  # rounding gives the last ones back
            parts.append(part)
        return Zones.of(groups, parts)

    length = shortest_prefix(
        len(candidates), lambda size: zones(size).spent(costs, budget.quantity), costs, budget=budget, ranking=ranking
    )
    return zones(length)
