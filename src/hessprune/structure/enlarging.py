"""Groups of a widened model, computed from those of the model before: the inverse of `remaining`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hessprune.structure.groups import Group, Slice

Axis = tuple[str, int]
"""A parameter or buffer, and one of its dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Enlarged:
    """The groups of a widened model, and which of their units are new."""

    groups: tuple[Group, ...]
    added: dict[str, tuple[int, ...]]
    """New units by group name, numbered in the widened model."""
    parents: dict[str, tuple[int, ...]]
    """The old unit beside which each new one stands, numbered in the widened model."""


def enlarged_groups(
    groups: Sequence[Group], parents: Mapping[str, Sequence[int]], sizes: Mapping[Axis, int]
) -> Enlarged:
    """Return the groups after new units have been put beside old ones.

    A new unit has as many positions as its parent, in the same arrangement: behind every run of neighbouring positions
    of the parent stands an equal run of the new unit. So a head stays together in a fused projection, and the parts of
    a concatenation keep their places.

    Args:
        groups: All groups of the model.
        parents: By group name, one old unit for each new one.
        sizes: The present size of every axis that a group has slices of.

    Returns:
        The groups in the same order; unit numbers follow the positions.

    Example:
        >>> from hessprune.structure.enlarging import enlarged_groups
        >>> from hessprune.structure.groups import Group, Slice
        >>> rows = Slice(param="a", dim=0, index=((0,), (1,)), role="producer")
        >>> wide = enlarged_groups([Group(name="g", num_units=2, slices=(rows,))], {"g": [0]}, {("a", 0): 2})
        >>> wide.groups[0].slices[0].index, wide.added, wide.parents
        (((0,), (1,), (2,)), {'g': (1,)}, {'g': (0,)})
    """
    insertions: dict[Axis, dict[int, list[tuple[str, int, list[int]]]]] = {axis: {} for axis in sizes}
    for group in groups:
        for serial, parent in enumerate(parents.get(group.name, ())):
            for piece in group.slices:
                for run in _runs(piece.index[parent]):
                    last = max(piece.index[parent][place] for place in run)
                    entry = (group.name, serial, run)
                    insertions[piece.param, piece.dim].setdefault(last, []).append(entry)
    moved, new = _places(insertions, sizes)
    wide = [_enlarged(group, parents.get(group.name, ()), moved, new) for group in groups]
    return Enlarged(
        groups=tuple(group for group, _, _ in wide),
        added={group.name: added for group, added, _ in wide if added},
        parents={group.name: beside for group, _, beside in wide if beside},
    )


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """Return the places within `positions` of each run of neighbouring positions."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    runs: list[list[int]] = []
    for place in order:
        if runs and positions[place] == positions[runs[-1][-1]] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _places(
    insertions: Mapping[Axis, Mapping[int, list[tuple[str, int, list[int]]]]], sizes: Mapping[Axis, int]
) -> tuple[dict[Axis, list[int]], dict[tuple[str, int, Axis], dict[int, int]]]:
    """Return where every old position of each axis goes, and the positions of each new unit by place."""
    moved: dict[Axis, list[int]] = {}
    new: dict[tuple[str, int, Axis], dict[int, int]] = {}
    for axis, size in sizes.items():
        count, moved[axis] = 0, []
        for position in range(size):
            moved[axis].append(count)
            count += 1
            for name, serial, run in insertions[axis].get(position, ()):
                for place in run:
                    new.setdefault((name, serial, axis), {})[place] = count
                    count += 1
    return moved, new


def _enlarged(
    group: Group,
    parents: Sequence[int],
    moved: Mapping[Axis, Sequence[int]],
    new: Mapping[tuple[str, int, Axis], Mapping[int, int]],
) -> tuple[Group, tuple[int, ...], tuple[int, ...]]:
    """Return one group with its new units, their numbers, and the numbers of their parents."""
    order: list[tuple[int, int]] = []  # unit, and -1 or the serial of a copy beside it
    for unit in range(group.num_units):
        order.append((unit, -1))
        order += [(unit, serial) for serial, parent in enumerate(parents) if parent == unit]
    number = {entry: place for place, entry in enumerate(order)}

    def row(piece: Slice, unit: int, serial: int) -> tuple[int, ...]:
        axis = piece.param, piece.dim
        if serial < 0:
            return tuple(moved[axis][position] for position in piece.index[unit])
        places = new[group.name, serial, axis]
        return tuple(places[place] for place in range(len(piece.index[unit])))

    wide = replace(
        group,
        num_units=len(order),
        slices=tuple(replace(p, index=tuple(row(p, *entry) for entry in order)) for p in group.slices),
        literals=tuple(replace(item, counts=tuple(item.counts[unit] for unit, _ in order)) for item in group.literals),
    )
    copies = [entry for entry in order if entry[1] >= 0]
    return wide, tuple(number[entry] for entry in copies), tuple(number[unit, -1] for unit, _ in copies)
