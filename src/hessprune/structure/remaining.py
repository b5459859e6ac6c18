"""Groups after surgery, without looking at the model again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hessprune.structure.groups import Group, Slice


def remaining_groups(groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> tuple[Group, ...]:
    """Return the same groups as they stand in the pruned model: fewer units, positions closed up.

    Unit `k` of a returned group is the `k`-th unit that was kept. Groups keep their names and their order.

    Example:
        >>> from hessprune.structure.groups import Group, Slice
        >>> from hessprune.structure.remaining import remaining_groups
        >>> rows = Slice(param="a", dim=0, index=((0,), (1,), (2,)), role="producer")
        >>> (left,) = remaining_groups([Group(name="g", num_units=3, slices=(rows,))], {"g": (1,)})
        >>> left.num_units, left.slices[0].index
        (2, ((0,), (1,)))
    """
    gone: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        for piece in group.slices:
            positions = (position for unit in removed.get(group.name, ()) for position in piece.index[unit])
            gone.setdefault((piece.param, piece.dim), []).extend(positions)
    below = {axis: np.sort(np.array(positions, dtype=np.int64)) for axis, positions in gone.items()}
    return tuple(_closed_up(group, set(removed.get(group.name, ())), below) for group in groups)


def _closed_up(group: Group, removed: set[int], below: Mapping[tuple[str, int], np.ndarray]) -> Group:
    kept = [unit for unit in range(group.num_units) if unit not in removed]

    def closed(piece: Slice) -> Slice:
        positions = np.array([piece.index[unit] for unit in kept], dtype=np.int64).reshape(len(kept), -1)
        positions -= np.searchsorted(below[piece.param, piece.dim], positions)
        return replace(piece, index=tuple(map(tuple, positions.tolist())))

    return replace(
        group,
        num_units=len(kept),
        slices=tuple(closed(piece) for piece in group.slices),
        literals=tuple(replace(item, counts=tuple(item.counts[unit] for unit in kept)) for item in group.literals),
    )
