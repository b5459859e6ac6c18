"""Exchanging removed for kept units of the same group, while that lowers the estimated loss increase.

An exchange leaves all costs as they are. Groups take turns. Changes in other groups are added up when a group's turn
comes, so that one exchange costs `O(r U_g)` with a factor of `r` rows, not `O(r U)`.
"""

from collections.abc import Sequence

import numpy as np
import torch

from hessprune.foundation.symmetric import SymmetricMatrix
from hessprune.planning.zones import KEPT

POOL = 1024
"""Units of each side that are tried in a group with more than twice as many: the likeliest ones."""


class Exchange:
    """The state of the exchanges: marginal increases, up to date for one group at a time."""

    def __init__(
        self,
        interactions: SymmetricMatrix,
        increase: np.ndarray,
        zone: np.ndarray,
        order: list[list[int]],
        start: np.ndarray,
    ) -> None:
        self.interactions, self.increase, self.zone, self.order, self.start = interactions, increase, zone, order, start
        self.diagonal = interactions.diagonal().numpy()
        self.pools = [self._pool(number) for number in range(len(order))]
        self.blocks: list[np.ndarray | None] = [None] * len(order)
        self.changes: list[tuple[int, float]] = []
        self.seen = [0] * len(order)

    def run(self) -> None:
        """Exchange in all groups, in turn, until none improves; `zone` and `order` are brought up to date."""
        improved = True
        while improved:
            improved = sum(self._within(number) for number in range(len(self.order))) > 0

    def _pool(self, number: int) -> np.ndarray:
        """Return the units of a group that take part."""
        units = np.arange(self.start[number], self.start[number + 1])
        if len(units) <= 2 * POOL:
            return units
        gone, kept = np.array(self.order[number], dtype=int), units[self.zone[units] == KEPT]
        dear = gone[np.argsort(-self.increase[gone], kind="stable")[:POOL]]
        cheap = kept[np.argsort(self.increase[kept], kind="stable")[:POOL]]
        return np.sort(np.concatenate([dear, cheap]))

    def _within(self, number: int) -> bool:
        """Make the best exchange of one group, if there is one."""
        pool = self.pools[number]
        gone = np.array([unit for unit in self.order[number] if unit in self._members(number)], dtype=int)
        kept = pool[self.zone[pool] == KEPT]
        if not len(gone) or not len(kept):
            return False
        self._catch_up(number)
        # Unit i back saves its marginal increase given the others; unit j then adds its increase without i.
        pairwise = self._block(number)[np.ix_(np.searchsorted(pool, gone), np.searchsorted(pool, kept))]
        change = self.increase[kept][None, :] - self.increase[gone][:, None] - pairwise
        best = np.unravel_index(change.argmin(), change.shape)
        # A smaller gain is rounding, also where increases cancel; exchanges for it might never end.
        scale = float(np.abs(self.increase[gone]).sum() + np.abs(self.diagonal[gone]).sum())
        if change[best] >= -1e-12 * max(1e-300, scale):
            return False
        self._exchange(number, int(gone[best[0]]), int(kept[best[1]]))
        return True

    def _members(self, number: int) -> range | set[int]:
        pool = self.pools[number]
        whole = len(pool) == self.start[number + 1] - self.start[number]
        return range(int(self.start[number]), int(self.start[number + 1])) if whole else set(pool.tolist())

    def _block(self, number: int) -> np.ndarray:
        """Return the interactions within a group's pool, formed once."""
        block = self.blocks[number]
        if block is None:
            pool = torch.from_numpy(self.pools[number])
            block = self.blocks[number] = self.interactions.block(pool, pool).numpy()
        return block

    def _exchange(self, number: int, back: int, out: int) -> None:
        self.zone[out], self.zone[back] = self.zone[back], KEPT
        self.order[number].remove(back)
        self.order[number].append(out)
        self.changes += [(back, -1.0), (out, 1.0)]

    def _catch_up(self, number: int) -> None:
        """Add the exchanges since a group's last turn to its increases."""
        pending = self.changes[self.seen[number] :]
        self.seen[number] = len(self.changes)
        if not pending:
            return
        units, amounts = np.array([unit for unit, _ in pending]), np.array([amount for _, amount in pending])
        pool = self.pools[number]
        change = self.interactions.combined(torch.from_numpy(amounts), torch.from_numpy(units), torch.from_numpy(pool))
        self.increase[pool] += change.numpy()
        inside = (units >= self.start[number]) & (units < self.start[number + 1])
        np.add.at(self.increase, units[inside], -amounts[inside] * self.diagonal[units[inside]])


def exchange(
    interactions: SymmetricMatrix, increase: np.ndarray, zone: np.ndarray, order: Sequence[list[int]], start: np.ndarray
) -> None:
    """Exchange units within groups while that lowers the estimate, in place.

    Args:
        interactions: `B`; its diagonal is not used.
        increase: Marginal loss increase of every unit given those that left.
        zone: The zone of every unit.
        order: The units of each group that were removed or implanted, in the order of leaving.
        start: First unit of each group, and the number of all.
    """
    Exchange(interactions, increase, zone, list(order), start).run()
