"""The same number of units in every layer: layers that are alike lose as many, each its own least salient ones."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError
from hessprune.planning.ranking import Ranking, orders, removable, rounding, shortest_prefix
from hessprune.structure.groups import Group


def alike(groups: Sequence[Group]) -> list[list[Group]]:
    """Return groups that differ in the number of their layer alone, side by side.

    Example:
        >>> from hessprune.structure.groups import Group, Slice
        >>> index = ((0,), (1,))
        >>> names = ("a.0.weight", "a.1.weight", "b.0.weight")
        >>> slices = [Slice(param=name, dim=0, index=index, role="producer") for name in names]
        >>> groups = [Group(name=piece.param, num_units=2, slices=(piece,)) for piece in slices]
        >>> [len(part) for part in alike(groups)]
        [2, 1]
    """
    found: dict[Any, list[Group]] = {}
    for group in groups:
        pieces = ((re.sub(r"\d+", "#", piece.param), piece.dim, len(piece.index[0])) for piece in group.slices)
        found.setdefault((group.num_units, tuple(pieces)), []).append(group)
    return [*found.values()]


def select_uniformly(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, *, budget: Budget, ranking: Ranking
) -> dict[str, tuple[int, ...]]:
    """Return the units to remove from each group, as many of all groups that are alike.

    One step takes the next unit of all of them; steps come by their saliency per cost saved, until the budget is met.

    Raises:
        ArgumentError: The budget is one of time.
        BudgetError: Removing all that may go is not enough.
    """
    if budget.is_latency:
        raise ArgumentError(
            "`ranking.uniform` must stand beside a budget that is counted, got one of time. Write hp.Budget(macs=0.5)."
        )
    order, leaving, kinds = orders(groups, saliency), rounding(costs, budget, ranking), alike(groups)
    saved = costs.saved_next(budget.quantity) if ranking.per_cost is not False else dict.fromkeys(order, 1.0)
    scores, owners = [], []
    for number, members in enumerate(kinds):
        most = min(removable(group, ranking) for group in members)
        total = sum(np.sort(saliency[group.name].numpy())[:most] for group in members)
        scores.append(total / max(sum(saved[group.name] for group in members), 1e-12))
        owners.append(np.full(most, number))
    steps = np.concatenate(owners)[np.argsort(np.concatenate(scores), kind="stable")]

    def removed(length: int) -> dict[str, int]:
        counts = np.bincount(steps[:length], minlength=len(kinds)).tolist()
        pairs = zip(kinds, counts, strict=True)
        return {group.name: leaving(group, count) for members, count in pairs for group in members}

    length = shortest_prefix(
        len(steps), lambda size: costs.spent(budget.quantity, removed(size)), costs, budget=budget, ranking=ranking
    )
    return {name: tuple(sorted(order[name][:count].tolist())) for name, count in removed(length).items()}
