"""Joint selection: removals interact, so each next unit is chosen given all that went before.

The estimated loss increase of removing a set `M` is the quadratic form `Σ_{j∈M} a_j + ½ Σ_{i≠j∈M} B_ij`; the marginal
increase of one more unit is `a_j + Σ_{i∈M} B_ij`. With `a = ½ diag Q` and `B = Q` this is the signed joint criterion,
with `a = |g| + ½ diag |Q|` and `B = |Q|` the greedy of SOSP-I.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from hessprune.errors import ArgumentError, BudgetError
from hessprune.planning.budget import Budget
from hessprune.planning.cost import CostModel
from hessprune.planning.implants import Options
from hessprune.planning.ranking import Ranking, out_of_reach, removable, rounding
from hessprune.planning.steps import take_steps
from hessprune.planning.zones import IMPLANTED, KEPT, REMOVED, Zones
from hessprune.structure.groups import Group


def select_jointly(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    interactions: Tensor,
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    options: Options | None = None,
) -> Zones:
    """Remove greedily the unit with the least marginal loss increase per cost saved, then swap where that helps.

    Where implants are allowed, a unit leaves in up to two steps. A stand-in that leaves a share `t` of the unit's loss
    counts as `t` of a removal, for the unit and for all that interact with it.

    Args:
        groups: All groups, in the order in which `interactions` counts their units.
        saliency: `a`, the loss increase of each unit alone: `{group name: (U_g,)}`.
        interactions: `B`, `(U, U)` over the units of all groups; the diagonal is not used.
        costs: Exact cost of what is left.
        budget: What may be left.
        ranking: Floors, rounding, and whether increases are taken per cost saved.
        options: What implanting costs; None removes only.

    Returns:
        The removed and the implanted units of each group. Takes O(U) per removal, O(U²) memory.

    Raises:
        BudgetError: Removing all that may go is not enough.
        ArgumentError: `interactions` has the wrong shape or is not finite.
    """
    greedy = _Greedy(groups, saliency, interactions, costs, budget=budget, ranking=ranking, options=options)
    if budget.is_latency:
        greedy.run_in_steps()
    else:
        greedy.run()
    greedy.swap()
    return greedy.zones()


class _Greedy:
    """The state of the selection: who is where, and what removing each other unit would add."""

    def __init__(
        self,
        groups: Sequence[Group],
        saliency: Mapping[str, Tensor],
        interactions: Tensor,
        costs: CostModel,
        *,
        budget: Budget,
        ranking: Ranking,
        options: Options | None,
    ) -> None:
        self.groups, self.costs, self.budget, self.ranking = groups, costs, budget, ranking
        self.leaving = rounding(costs, budget, ranking)
        sizes = [group.num_units for group in groups]
        self.owner = np.repeat(np.arange(len(groups)), sizes)
        self.start = np.concatenate([[0], np.cumsum(sizes)])
        self.pairwise = _checked(interactions, int(self.start[-1]))
        self.increase = np.concatenate([saliency[group.name].numpy() for group in groups]).astype(float)
        self.available = np.ones(len(self.owner), dtype=bool)
        self.order: list[list[int]] = [[] for _ in groups]
        self.zone = np.full(len(self.owner), KEPT)
        self._set_options(options)

    def _set_options(self, options: Options | None) -> None:
        """Lay out the options of every unit: what an implant loses and saves, in shares, and who has one at all."""
        self.options = options
        known = options.loss if options else {}
        parts = [known.get(group.name, np.ones(group.num_units)) for group in self.groups]
        self.loss = np.concatenate(parts)
        self.saving = np.array([options.saving.get(g.name, 0.0) if options else 0.0 for g in self.groups])[self.owner]
        self.able = np.array([group.name in known for group in self.groups])[self.owner]
        worth = [options.is_worth_it(group.name) for group in self.groups if options and group.name in known]
        self.worth = np.zeros(len(self.owner), dtype=bool)
        if options and options.share == "auto" and worth:
            self.worth[self.able] = np.concatenate(worth)
        self.sequence: list[int] = []

    def run(self) -> None:
        """Let units leave one by one until the budget is met."""
        limit = self.budget.limit(self.costs.spent(self.budget.quantity))
        allowed = np.array([removable(group, self.ranking) for group in self.groups])
        self.available &= (allowed > 0)[self.owner]
        while self._spent() > limit:
            if not self.available.any():
                dense = self.costs.spent(self.budget.quantity)
                raise BudgetError(out_of_reach(self.budget, self._spent(), dense, self.ranking))
            unit = int(np.where(self.available, self._price(), np.inf).argmin())
            self._leave(unit)
            group = self._units(self.owner[unit])
            if (self.zone[group] != KEPT).sum() >= allowed[self.owner[unit]]:
                self.available[group] &= self.zone[group] == IMPLANTED
        self.zone = self._zones_now()

    def run_in_steps(self) -> None:
        """Let units leave in steps of time until the budget is met."""
        counts = take_steps(
            self.groups,
            self.costs,
            budget=self.budget,
            ranking=self.ranking,
            losses=lambda number: self._next_of(number)[1],
            take=self._take,
        )
        for group, gone in zip(self.groups, map(list, self.order), strict=True):
            for unit in gone[counts[group.name] :]:
                self._restore(unit)

    def _next_of(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the kept units of a group, the cheapest first, and what the first one, two, … of them add."""
        units = np.arange(self.start[number], self.start[number + 1])[self.available[self._units(number)]]
        units = units[np.argsort(self.increase[units], kind="stable")]
        among = np.tril(self.pairwise[np.ix_(units, units)]).sum(1)
        return units, (self.increase[units] + among).cumsum()

    def _take(self, number: int, amount: int) -> None:
        for unit in self._next_of(number)[0][:amount].tolist():
            self._remove(unit)

    def _price(self) -> np.ndarray:
        """Loss increase per cost saved of every unit's next step."""
        loss = np.where(self.zone == IMPLANTED, 1 - self.loss, np.where(self.worth, self.loss, 1))
        saved = np.where(self.zone == IMPLANTED, 1 - self.saving, np.where(self.worth, self.saving, 1))
        return loss * self.increase / (np.maximum(saved, 1e-12) * self._saved())

    def _leave(self, unit: int) -> None:
        """Take the next step of a unit: into an implant where that is worth it, else out."""
        if self.zone[unit] == KEPT and self.worth[unit]:
            self.zone[unit] = IMPLANTED
            self.increase += self.loss[unit] * self.pairwise[unit]
            return
        self.sequence.append(unit)
        self._remove(unit, 1 - self.loss[unit] if self.zone[unit] == IMPLANTED else 1.0)

    def _zones_now(self) -> np.ndarray:
        """Return the zones; of a given share, the last units that left are the implanted ones."""
        zone = self.zone.copy()
        if self.options:
            able = [unit for unit in self.sequence if self.able[unit]]
            zone[able[len(able) - self.options.num_by_share(len(able)) :]] = IMPLANTED
        return zone

    def swap(self) -> None:
        """Exchange a removed for a kept unit of the same group while that lowers the estimate; costs do not change."""
        improved = True
        while improved:
            improved = sum(self._swap_within(number) for number in range(len(self.groups))) > 0

    def zones(self) -> Zones:
        """The decision; where rounding gives units back, the last ones removed return."""
        parts = []
        for number, group in enumerate(self.groups):
            gone = [unit for unit in self.order[number] if self.zone[unit] == REMOVED]
            zone = self.zone.copy()
            zone[gone[self.leaving(group, len(gone)) :]] = KEPT
            parts.append(zone[self._units(number)])
        return Zones.of(self.groups, parts)

    def _swap_within(self, number: int) -> bool:
        gone = np.array(self.order[number], dtype=int)
        units = np.arange(self.start[number], self.start[number + 1])
        kept = units[self.zone[units] == KEPT]
        if not len(gone) or not len(kept):
            return False
        # Putting i back saves its marginal increase given the others; j then costs what it would without i.
        change = self.increase[kept][None, :] - self.increase[gone][:, None] - self.pairwise[np.ix_(gone, kept)]
        best = np.unravel_index(change.argmin(), change.shape)
        if change[best] >= -1e-12 * max(1e-300, float(np.abs(self.increase[gone]).sum())):
            return False
        back, out = int(gone[best[0]]), int(kept[best[1]])
        zone = self.zone[back]
        self._restore(back)
        self._remove(out)
        self.zone[out] = zone
        return True

    def _remove(self, unit: int, amount: float = 1.0) -> None:
        self.increase += amount * self.pairwise[unit]
        self.order[self.owner[unit]].append(unit)
        self.available[unit] = False
        self.zone[unit] = REMOVED

    def _restore(self, unit: int) -> None:
        self.increase -= self.pairwise[unit]
        self.order[self.owner[unit]].remove(unit)
        self.zone[unit] = KEPT

    def _units(self, number: int) -> slice:
        return slice(int(self.start[number]), int(self.start[number + 1]))

    def _spent(self) -> float:
        zone = self._zones_now()
        removed = np.bincount(self.owner[zone == REMOVED], minlength=len(self.groups))
        implanted = np.bincount(self.owner[zone == IMPLANTED], minlength=len(self.groups))
        names = [group.name for group in self.groups]
        pairs = zip(self.groups, removed.tolist(), strict=True)
        counts = {group.name: self.leaving(group, number) for group, number in pairs}
        return self.costs.spent(self.budget.quantity, counts, dict(zip(names, implanted.tolist(), strict=True)))

    def _saved(self) -> np.ndarray:
        """Cost that one more unit saves now, for every unit (1 where cost is not asked for)."""
        if self.ranking.per_cost is False:
            return np.ones(len(self.owner))
        counts = {group.name: len(gone) for group, gone in zip(self.groups, self.order, strict=True)}
        saved = self.costs.saved_next(self.budget.quantity, counts)
        return np.maximum(np.array([saved[group.name] for group in self.groups]), 1e-12)[self.owner]


def _checked(interactions: Tensor, size: int) -> np.ndarray:
    """Return `B` as an array with an empty diagonal."""
    if interactions.shape != (size, size):
        shape = tuple(interactions.shape)
        raise ArgumentError(f"`interactions` must have shape ({size}, {size}), one row per unit, got {shape}.")
    pairwise = interactions.detach().cpu().numpy().copy()
    if not np.isfinite(pairwise).all():
        raise ArgumentError("`interactions` must be finite. Check the data and the model's weights.")
    np.fill_diagonal(pairwise, 0)
    return pairwise
