"""Joint selection: removals interact, so each next unit is chosen given all that went before.

The estimated loss increase of removing a set `M` is the quadratic form `Σ_{j∈M} a_j + ½ Σ_{i≠j∈M} B_ij`; the marginal
increase of one more unit is `a_j + Σ_{i∈M} B_ij`. With `a = ½ diag Q` and `B = Q` this is the signed joint criterion,
with `a = |g| + ½ diag |Q|` and `B = |Q|` the greedy of SOSP-I.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError
from hessprune.foundation.symmetric import Interactions, as_interactions
from hessprune.planning.exchange import exchange
from hessprune.planning.implants import Options
from hessprune.planning.ranking import Ranking, out_of_reach, removable, rounding
from hessprune.planning.steps import take_steps
from hessprune.planning.zones import IMPLANTED, KEPT, REMOVED, Zones
from hessprune.structure.groups import Group


def select_jointly(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    interactions: Tensor | Interactions,
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
        interactions: `B`, `(U, U)` over the units of all groups, whole or as a `Factor`; the diagonal is not used.
        costs: Exact cost of what is left.
        budget: What may be left.
        ranking: Floors, rounding, and whether increases are taken per cost saved.
        options: What implanting costs; None removes only.

    Returns:
        The removed and the implanted units of each group. A removal takes O(U), and with a factor of `r` rows
        `2 r U` operations, most of them in products of many rows at once; exchanges take O(U_g²) per group and turn,
        and up to 1 024 units of each side of a group `8 U_g²` bytes.

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


HELD = 16
"""How many batches of rows are held for later."""


class _Greedy:
    """The state of the selection: who is where, and what removing each other unit would add."""

    def __init__(
        self,
        groups: Sequence[Group],
        saliency: Mapping[str, Tensor],
        interactions: Tensor | Interactions,
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
        self.interactions = _checked(interactions, int(self.start[-1]))
        self.rows = _Rows(self.interactions)
        self.increase = np.concatenate([saliency[group.name].numpy() for group in groups]).astype(float)
        self.available = np.ones(len(self.owner), dtype=bool)
        self.order: list[list[int]] = [[] for _ in groups]
        self.zone = np.full(len(self.owner), KEPT)
        self.saved: np.ndarray | None = None
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
        # Shares of a removal that each unit's next step loses and saves.
        self.step_loss = np.where(self.worth, self.loss, 1.0)
        self.step_saving = np.maximum(np.where(self.worth, self.saving, 1.0), 1e-12)
        self.tally = _Tally(self.groups, self.leaving)
        self.sequence: list[int] = []
        self.passed = 0

    def run(self) -> None:
        """Let units leave one by one until the budget is met."""
        limit = self.budget.limit(self.costs.spent(self.budget.quantity))
        allowed = np.array([removable(group, self.ranking) for group in self.groups])
        self.available &= (allowed > 0)[self.owner]
        while self._spent() > limit:
            if not self.available.any():
                dense = self.costs.spent(self.budget.quantity)
                raise BudgetError(out_of_reach(self.budget, self._spent(), dense, self.ranking))
            price = np.where(self.available, self._price(), np.inf)
            unit = int(price.argmin())
            self._leave(unit, price)
            group = self._units(self.owner[unit])
            if (self.zone[group] != KEPT).sum() >= allowed[self.owner[unit]]:
                self.available[group] &= self.zone[group] == IMPLANTED
        # Of a given share, the last units that left are the implanted ones.
        self.zone[self.sequence[self.passed :]] = IMPLANTED

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
        index = torch.from_numpy(units)
        among = np.tril(self.interactions.block(index, index).numpy(), -1).sum(1)
        return units, (self.increase[units] + among).cumsum()

    def _take(self, number: int, amount: int) -> None:
        for unit in self._next_of(number)[0][:amount].tolist():
            self._leave(unit, np.where(self.available, self.increase, np.inf))

    def _restore(self, unit: int) -> None:
        own, number = self.increase[unit], int(self.owner[unit])
        self.increase -= self.interactions.rows([unit]).numpy()[0]
        self.increase[unit] = own
        self.order[number].remove(unit)
        self.tally.move(number, REMOVED, KEPT)
        self.zone[unit] = KEPT

    def _price(self) -> np.ndarray:
        """Loss increase per cost saved of every unit's next step."""
        return self.step_loss * self.increase / (self.step_saving * self._saved()[self.owner])

    def _leave(self, unit: int, price: np.ndarray) -> None:
        """Take the next step of a unit: into an implant where that is worth it, else out."""
        row, own = self.rows.take(unit, price), self.increase[unit]
        self.increase += self.step_loss[unit] * row
        self.increase[unit] = own
        number = int(self.owner[unit])
        if self.zone[unit] == KEPT and self.worth[unit]:
            self.zone[unit] = IMPLANTED
            self.step_loss[unit] = 1 - self.loss[unit]
            self.step_saving[unit] = max(1 - self.saving[unit], 1e-12)
            self.tally.move(number, KEPT, IMPLANTED)
            return
        self.order[number].append(unit)
        self.available[unit] = False
        self.saved = None
        self.tally.move(number, int(self.zone[unit]), REMOVED)
        self.zone[unit] = REMOVED
        if self.options and self.able[unit]:
            self._share_out(unit)

    def _share_out(self, unit: int) -> None:
        """Count the last of those that left as implanted, as many as a given share says."""
        self.sequence.append(unit)
        self.tally.move(int(self.owner[unit]), REMOVED, IMPLANTED)
        whole = len(self.sequence) - self.options.num_by_share(len(self.sequence)) if self.options else 0
        for earlier in self.sequence[self.passed : whole]:
            self.tally.move(int(self.owner[earlier]), IMPLANTED, REMOVED)
        self.passed = max(whole, self.passed)

    def swap(self) -> None:
        """Exchange a removed for a kept unit of the same group while that lowers the estimate; costs do not change."""
        exchange(self.interactions, self.increase, self.zone, self.order, self.start)

    def zones(self) -> Zones:
        """The decision; where rounding gives units back, the last ones removed return."""
        parts = []
        for number, group in enumerate(self.groups):
            gone = [unit for unit in self.order[number] if self.zone[unit] == REMOVED]
            self.zone[gone[self.leaving(group, len(gone)) :]] = KEPT
            parts.append(self.zone[self._units(number)])
        return Zones.of(self.groups, parts)

    def _units(self, number: int) -> slice:
        return slice(int(self.start[number]), int(self.start[number + 1]))

    def _spent(self) -> float:
        return self.costs.spent(self.budget.quantity, self.tally.removed, self.tally.implanted)

    def _saved(self) -> np.ndarray:
        """Cost that one more unit of each group saves now (1 where cost is not asked for)."""
        if self.ranking.per_cost is False:
            return np.ones(len(self.groups))
        if self.saved is None:
            counts = {group.name: len(gone) for group, gone in zip(self.groups, self.order, strict=True)}
            saved = self.costs.saved_next(self.budget.quantity, counts)
            self.saved = np.maximum(np.array([saved[group.name] for group in self.groups]), 1e-12)
        return self.saved


class _Tally:
    """How many units of each group are removed, after rounding, and implanted."""

    def __init__(self, groups: Sequence[Group], leaving: Callable[[Group, int], int]) -> None:
        self.groups, self.leaving = groups, leaving
        self.counts = [[0, 0, 0] for _ in groups]
        self.removed: dict[str, int] = {}
        self.implanted: dict[str, int] = {}

    def move(self, number: int, origin: int, zone: int) -> None:
        """Count one unit of a group that went from one zone to another."""
        group, counts = self.groups[number], self.counts[number]
        counts[origin] -= 1
        counts[zone] += 1
        self.removed[group.name] = self.leaving(group, counts[REMOVED])
        self.implanted[group.name] = counts[IMPLANTED]


class _Rows:
    """Rows of the interactions, with those of the units that will probably leave next fetched along."""

    def __init__(self, interactions: Interactions) -> None:
        self.interactions = interactions
        self.held: dict[int, np.ndarray] = {}

    def take(self, unit: int, price: np.ndarray) -> np.ndarray:
        """Return the row of a unit, and forget it."""
        if unit not in self.held:
            self._fetch(unit, price)
        return self.held.pop(unit)

    def _fetch(self, unit: int, price: np.ndarray) -> None:
        size = min(self.interactions.batch, len(price))
        if len(self.held) > HELD * size:
            cheapest = sorted(self.held, key=price.__getitem__)[: HELD * size // 2]
            self.held = {other: self.held[other] for other in cheapest}
        nearest = np.argpartition(price, size - 1)[:size] if size > 1 else np.zeros(0, dtype=int)
        others = nearest[price[nearest] < np.inf].tolist()
        wanted = [unit, *(other for other in others if other != unit and other not in self.held)]
        rows = self.interactions.rows(wanted).numpy()
        self.held.update((other, row.copy()) for other, row in zip(wanted, rows, strict=True))  # not views: each goes


def _checked(interactions: Tensor | Interactions, size: int) -> Interactions:
    """Return `B`, known to fit."""
    found = as_interactions(interactions)
    if found.shape != (size, size):
        raise ArgumentError(f"`interactions` must have shape ({size}, {size}), one row per unit, got {found.shape}.")
    if not found.is_finite():
        raise ArgumentError("`interactions` must be finite. Check the data and the model's weights.")
    return found
