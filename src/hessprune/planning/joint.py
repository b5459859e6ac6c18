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
from hessprune.planning.ranking import Ranking, out_of_reach, removable, rounded
from hessprune.structure.groups import Group


def select_jointly(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    interactions: Tensor,
    costs: CostModel,
    *,
    budget: Budget,
    ranking: Ranking,
) -> dict[str, tuple[int, ...]]:
    """Remove greedily the unit with the least marginal loss increase per cost saved, then swap where that helps.

    Args:
        groups: All groups, in the order in which `interactions` counts their units.
        saliency: `a`, the loss increase of each unit alone: `{group name: (U_g,)}`.
        interactions: `B`, `(U, U)` over the units of all groups; the diagonal is not used.
        costs: Exact cost of what is left.
        budget: What may be left.
        ranking: Floors, rounding, and whether increases are taken per cost saved.

    Returns:
        The removed units of each group. Takes O(U) per removal, O(U²) memory.

    Raises:
        BudgetError: Removing all that may go is not enough.
        ArgumentError: `interactions` has the wrong shape or is not finite.
    """
    greedy = _Greedy(groups, saliency, interactions, costs, budget, ranking)
    greedy.run()
    greedy.swap()
    return greedy.removed()


class _Greedy:
    """The state of the selection: who is gone, and what removing each other unit would add."""

    def __init__(
        self,
        groups: Sequence[Group],
        saliency: Mapping[str, Tensor],
        interactions: Tensor,
        costs: CostModel,
        budget: Budget,
        ranking: Ranking,
    ) -> None:
        self.groups, self.costs, self.budget, self.ranking = groups, costs, budget, ranking
        sizes = [group.num_units for group in groups]
        self.owner = np.repeat(np.arange(len(groups)), sizes)
        self.start = np.concatenate([[0], np.cumsum(sizes)])
        self.pairwise = _checked(interactions, int(self.start[-1]))
        self.increase = np.concatenate([saliency[group.name].numpy() for group in groups]).astype(float)
        self.available = np.ones(len(self.owner), dtype=bool)
        self.order: list[list[int]] = [[] for _ in groups]

    def run(self) -> None:
        """Remove units one by one until the budget is met."""
        limit = self.budget.limit(self.costs.spent(self.budget.quantity))
        allowed = [removable(group, self.ranking) for group in self.groups]
        for number, most in enumerate(allowed):
            self.available[self._units(number)] = most > 0
        while self._spent() > limit:
            if not self.available.any():
                dense = self.costs.spent(self.budget.quantity)
                raise BudgetError(out_of_reach(self.budget, self._spent(), dense, self.ranking))
            unit = int(np.where(self.available, self.increase / self._saved(), np.inf).argmin())
            group = self.owner[unit]
            self._remove(unit)
            if len(self.order[group]) >= allowed[group]:
                self.available[self._units(group)] = False

    def swap(self) -> None:
        """Exchange a removed for a kept unit of the same group while that lowers the estimate; costs do not change."""
        improved = True
        while improved:
            improved = sum(self._swap_within(number) for number in range(len(self.groups))) > 0

    def removed(self) -> dict[str, tuple[int, ...]]:
        """The decision; where rounding gives units back, the last ones removed return."""
        counts = self._counts()
        return {
            group.name: tuple(sorted(unit - int(self.start[n]) for unit in self.order[n][: counts[group.name]]))
            for n, group in enumerate(self.groups)
        }

    def _swap_within(self, number: int) -> bool:
        gone = np.array(self.order[number], dtype=int)
        units = np.arange(self.start[number], self.start[number + 1])
        kept = np.setdiff1d(units, gone)
        if not len(gone) or not len(kept):
            return False
        # Putting i back saves its marginal increase given the others; j then costs what it would without i.
        change = self.increase[kept][None, :] - self.increase[gone][:, None] - self.pairwise[np.ix_(gone, kept)]
        best = np.unravel_index(change.argmin(), change.shape)
        if change[best] >= -1e-12 * max(1e-300, float(np.abs(self.increase[gone]).sum())):
            return False
        back, out = gone[best[0]], kept[best[1]]
        self._restore(int(back))
        self._remove(int(out))
        return True

    def _remove(self, unit: int) -> None:
        self.increase += self.pairwise[unit]
        self.order[self.owner[unit]].append(unit)
        self.available[unit] = False

    def _restore(self, unit: int) -> None:
        self.increase -= self.pairwise[unit]
        self.order[self.owner[unit]].remove(unit)

    def _units(self, number: int) -> slice:
        return slice(int(self.start[number]), int(self.start[number + 1]))

    def _counts(self) -> dict[str, int]:
        pairs = zip(self.groups, self.order, strict=True)
        return {group.name: rounded(group, len(gone), self.ranking) for group, gone in pairs}

    def _spent(self) -> int:
        return self.costs.spent(self.budget.quantity, self._counts())

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
