"""Joint selection: removals interact, so each next unit is chosen given the units that went before.

The estimated loss increase of removing a set `M` is the quadratic form `Σ_{j∈M} a_j + ½ Σ_{i≠j∈M} B_ij`. One more unit
adds `a_j + Σ_{i∈M} B_ij`. With `a = ½ diag Q` and `B = Q` this is the signed joint criterion; with
`a = |g| + ½ diag |Q|` and `B = |Q|` it is the greedy criterion of SOSP-I.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError
from hessprune.foundation.symmetric import SymmetricMatrix, as_symmetric
from hessprune.planning.exchange import exchange
from hessprune.planning.implants import ImplantShare
from hessprune.planning.ranking import Ranking, out_of_reach, removable, rounding
from hessprune.planning.steps import take_steps
from hessprune.planning.zones import IMPLANTED, KEPT, REMOVED, Zones
from hessprune.structure.groups import Group

HELD = 16
"""How many batches of rows are held for later."""


def select_jointly(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    interactions: Tensor | SymmetricMatrix,
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
    implants: ImplantShare | None = None,
) -> Zones:
    """Remove greedily the unit with the least marginal loss increase per cost saved, then exchange where that helps.

    Args:
        groups: All groups, in the order in which `interactions` counts their units.
        saliency: `a`, the loss increase of each unit alone: `{group name: (U_g,)}`.
        interactions: `B`, `(U, U)` over the units of all groups, whole or as a `Factor`; the diagonal is not used.
        costs: Exact costs.
        budget: The bound.
        ranking: Floors, rounding, and whether increases are taken per cost saved.
        implants: The share of leaving units that are implanted, the last ones; None removes only.

    Returns:
        The removed and the implanted units of each group. A removal takes O(U), and with a factor of `r` rows
        `2 r U` operations, most of them in products of many rows at once. Exchanges take O(U_g²) per group and turn,
        and for up to 1 024 units of each side of a group `8 U_g²` bytes.

    Raises:
        BudgetError: Removing all that may go is not enough.
        ArgumentError: `interactions` has the wrong shape or is not finite.
    """
    greedy = _Greedy(groups, saliency, interactions, costs, budget=budget, ranking=ranking, implants=implants)
    if budget.is_latency:
        greedy.run_in_steps()
    else:
        greedy.run()
    greedy.swap()
    return greedy.zones()


class _Greedy:
    """The state of the selection: the zone of every unit, and the increase that its removal would add."""

    def __init__(
        self,
        groups: Sequence[Group],
        saliency: Mapping[str, Tensor],
        interactions: Tensor | SymmetricMatrix,
        costs: CostModel,
        *,
        budget: Budget,
        ranking: Ranking,
        implants: ImplantShare | None,
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
        self.implants = implants
        self.tally = _Tally(self.groups, self.leaving)
        self.sequence: list[int] = []
        """Units that left and can hold a stand-in, in that order; the first `num_whole` of them are removed."""
        self.num_whole = 0

    def run(self) -> None:
        """Let units leave one by one until the budget is met."""
        limit = self.budget.limit(self.costs.spent(self.budget.quantity))
        allowed = np.array([removable(group, self.ranking) for group in self.groups])
        self.available &= (allowed > 0)[self.owner]
        while self._spent() > limit:
            if not self.available.any():
                dense = self.costs.spent(self.budget.quantity)
                raise BudgetError(out_of_reach(self.budget, self._spent(), dense, self.ranking))
            price = np.where(self.available, self.increase / self._saved()[self.owner], np.inf)
            unit = int(price.argmin())
            self._leave(unit, price)
            number = int(self.owner[unit])
            if len(self.order[number]) >= allowed[number]:
                self.available[self._units(number)] = False
        self.zone[self.sequence[self.num_whole :]] = IMPLANTED

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
        """Return the kept units of a group, the cheapest first, and the increase by the first one, two, … of them."""
        units = np.arange(self.start[number], self.start[number + 1])[self.available[self._units(number)]]
        units = units[np.argsort(self.increase[units], kind="stable")]
        index = torch.from_numpy(units)
        among = np.tril(self.interactions.block(index, index).numpy(), -1).sum(1)
        return units, (self.increase[units] + among).cumsum()

    def _take(self, number: int, amount: int) -> None:
        for unit in self._next_of(number)[0][:amount].tolist():
            self._leave(unit, np.where(self.available, self.increase, np.inf))

    def _restore(self, unit: int) -> None:
        increase, number = self.increase[unit], int(self.owner[unit])
        self.increase -= self.interactions.rows([unit]).numpy()[0]
        self.increase[unit] = increase
        self.order[number].remove(unit)
        self.tally.move(number, REMOVED, KEPT)
        self.zone[unit] = KEPT

    def _leave(self, unit: int, price: np.ndarray) -> None:
        """Remove a unit, and add its interactions to the increases of all others."""
        row, increase = self.rows.take(unit, price), self.increase[unit]
        self.increase += row
        self.increase[unit] = increase
        number = int(self.owner[unit])
        self.order[number].append(unit)
        self.available[unit] = False
        self.saved = None
        self.tally.move(number, KEPT, REMOVED)
        self.zone[unit] = REMOVED
        if self.implants and self.groups[number].name in self.implants.groups:
            self._implant_last(unit, self.implants)

    def _implant_last(self, unit: int, implants: ImplantShare) -> None:
        """Count the last units that left as implanted, and those before them as removed."""
        self.sequence.append(unit)
        self.tally.move(int(self.owner[unit]), REMOVED, IMPLANTED)
        num_whole = len(self.sequence) - implants.number(len(self.sequence))
        for earlier in self.sequence[self.num_whole : num_whole]:
            self.tally.move(int(self.owner[earlier]), IMPLANTED, REMOVED)
        self.num_whole = max(num_whole, self.num_whole)

    def swap(self) -> None:
        """Exchange a removed for a kept unit of the same group while that lowers the estimate; costs do not change."""
        exchange(self.interactions, self.increase, self.zone, self.order, self.start)

    def zones(self) -> Zones:
        """Return the decision; where rounding gives units back, the last ones removed return."""
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
        """Return the cost that one more unit of each group saves now, `(G,)`; 1 where cost does not matter."""
        if self.ranking.per_cost is False:
            return np.ones(len(self.groups))
        if self.saved is None:
            counts = {group.name: len(gone) for group, gone in zip(self.groups, self.order, strict=True)}
            saved = self.costs.saved_next(self.budget.quantity, counts)
            self.saved = np.maximum(np.array([saved[group.name] for group in self.groups]), 1e-12)
        return self.saved


class _Tally:
    """The numbers of units of each group that are removed, after rounding, and implanted."""

    def __init__(self, groups: Sequence[Group], leaving: Callable[[Group, int], int]) -> None:
        self.groups, self.leaving = groups, leaving
        self.counts = [[0, 0, 0] for _ in groups]
        self.removed: dict[str, int] = {}
        self.implanted: dict[str, int] = {}

    def move(self, number: int, origin: int, zone: int) -> None:
        """Move one unit of a group from one zone to another."""
        group, counts = self.groups[number], self.counts[number]
        counts[origin] -= 1
        counts[zone] += 1
        self.removed[group.name] = self.leaving(group, counts[REMOVED])
        self.implanted[group.name] = counts[IMPLANTED]


class _Rows:
    """Rows of the interactions; the rows of the units that will probably leave next are fetched in the same product."""

    def __init__(self, interactions: SymmetricMatrix) -> None:
        self.interactions = interactions
        self.held: dict[int, np.ndarray] = {}

    def take(self, unit: int, price: np.ndarray) -> np.ndarray:
        """Return the row of a unit, and release it."""
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
        units = [unit, *(other for other in others if other != unit and other not in self.held)]
        rows = self.interactions.rows(units).numpy()
        # Copies, not views: a released row must free its memory.
        self.held.update((other, row.copy()) for other, row in zip(units, rows, strict=True))


def _checked(interactions: Tensor | SymmetricMatrix, size: int) -> SymmetricMatrix:
    """Return `B` after a check of its shape and values."""
    matrix = as_symmetric(interactions)
    if matrix.shape != (size, size):
        raise ArgumentError(f"`interactions` must have shape ({size}, {size}), one row per unit, got {matrix.shape}.")
    if not matrix.is_finite():
        raise ArgumentError("`interactions` must be finite. Check the data and the model's weights.")
    return matrix
