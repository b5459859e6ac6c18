"""Turn labels into groups: tied labels are one unit, and units with the same slices form a group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from hessprune.foundation.modules import split_name
from hessprune.operators.labels import CONSTANT
from hessprune.operators.leaves import Axis, Role
from hessprune.structure.groups import Frozen, Group, Kind, Literal, Slice
from hessprune.structure.kinds import kind_of
from hessprune.structure.walk import GraphWalk

NamedAxis = tuple[str, int, Axis]
LONELY = "all of its channels depend on each other"
NUMBERS = "buffers alone have it, and no parameter"
TOGETHER = "a norm normalises its heads together"
ONE_WIDTH = "queries, keys and values have one width here: ask for 'qk' and 'v'"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Units:
    """The positions of all units, in runs of equal (unit, axis), sorted by unit and axis."""

    root: np.ndarray
    """Component of each run, `(R,)`."""
    axis: np.ndarray
    """Number of the axis on which the run lies, `(R,)`."""
    start: np.ndarray
    """First index of each run in `position`, `(R,)`."""
    length: np.ndarray
    """Number of positions of each run, `(R,)`."""
    position: np.ndarray
    """Positions on the axes, one run after another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """The findings of a walk."""

    groups: list[Group]
    """In the order of use."""
    frozen: list[Frozen]
    """All axes that stay, with the reasons."""
    written: dict[str, tuple[Literal, ...]]
    """By group, sizes that may be written down in a forward and could be lowered."""
    pairs: list[tuple[Group, Group, Group]]
    """Widths of queries and keys, those of values, and both as one group, for code that gives them one size."""


def collect(walk: GraphWalk) -> Collected:
    """Return groups, frozen axes, and sizes that may be written down."""
    axes = _all_axes(walk)
    roots, (numbers, reasons) = walk.labels.roots(), walk.labels.frozen()
    frozen = [
        Frozen(param=name, dim=dim, reason=reason)
        for name, dim, axis in axes
        for reason in dict.fromkeys(reasons[number] for number in np.unique(numbers[axis.labels]) if number >= 0)
    ]
    groups: list[Group] = []
    written: dict[str, tuple[Literal, ...]] = {}
    of_units: dict[str, np.ndarray] = {}
    marked = _marked(walk, roots)
    names: dict[str, int] = {}
    units = _units(axes, roots, numbers)
    for rows in _alike(units):
        group = _named(_build(walk, roots, axes, units, rows), names)
        members = units.root[rows[:, 0]]
        known: list[Kind] = [kind for kind, roots_of in marked.items() if np.isin(members, roots_of).any()]
        if reason := _obstacle(walk, group, known):
            frozen += [Frozen(param=piece.param, dim=piece.dim, reason=reason) for piece in group.slices]
            continue
        kind = kind_of(walk.modules[""], group.slices, known[0] if known else None)
        groups.append(replace(group, kind=kind))
        of_units[group.name] = members
        written[group.name] = _written(walk, roots, members) if known else ()
        if kind == "embedding":
            written[group.name] += _widths(walk, roots, marked["heads"], group.num_units)
        elif kind in ("qk", "v"):
            written[group.name] += _scales(walk, roots, members)
    pairs = []
    for first, second in _pairs(walk, roots, groups, of_units):
        both = replace(first, name=f"{first.name}+v", slices=(*first.slices, *second.slices))
        one = roots.copy()
        for own, other in zip(of_units[first.name], of_units[second.name], strict=True):
            one[one == other] = own
        members = of_units[first.name]
        written[both.name] = _written(walk, one, members) + _scales(walk, one, members)
        pairs.append((first, second, both))
    return Collected(groups=groups, frozen=frozen, written=written, pairs=pairs)


def _pairs(
    walk: GraphWalk, roots: np.ndarray, groups: list[Group], of_units: dict[str, np.ndarray]
) -> Iterator[tuple[Group, Group]]:
    """Yield the widths of queries and keys with those of values in the same module, if there are as many."""
    found: dict[str, dict[str, Group]] = {}
    for kind, module, labels in walk.closure.widths:
        places = _roots(roots, [labels])
        for group in groups:
            if group.kind == kind and np.isin(of_units[group.name], places).all():
                found.setdefault(module, {})[kind] = group
    for parts in found.values():
        if len(parts) == 2 and parts["qk"].num_units == parts["v"].num_units:
            yield parts["qk"], parts["v"]


def _obstacle(walk: GraphWalk, group: Group, known: Sequence[Kind]) -> str:
    """Return the reason for which the units of a group stay, if they do: no parameter has them, say."""
    if all(walk.is_fixed(piece.param) for piece in group.slices):
        return NUMBERS
    if group.num_units == 1:
        return LONELY
    if "embedding" in known and len(known) > 1:
        return TOGETHER
    return ONE_WIDTH if {"qk", "v"} <= {*known} and not {"qk", "v"} <= {*walk.closure.asked} else ""


def _marked(walk: GraphWalk, roots: np.ndarray) -> dict[Kind, np.ndarray]:
    """Return the roots of units whose kind operators say; where one unit has several, the first counts."""
    closure = walk.closure
    of_kind = {kind: [labels for known, _, labels in closure.widths if known == kind] for kind in ("qk", "v")}
    marked: dict[Kind, list[Tensor]] = {
        "heads": closure.heads,
        "qk": of_kind["qk"],
        "v": of_kind["v"],
        "embedding": closure.normalised,
    }
    return {kind: _roots(roots, labels) for kind, labels in marked.items()}


def _roots(roots: np.ndarray, parts: list[Tensor]) -> np.ndarray:
    """Return the roots of some labels, each once; fixed labels have none."""
    labels = np.concatenate([np.empty(0, np.int64), *(labels.numpy() for labels in parts)])
    return np.unique(roots[labels[labels > CONSTANT]])


def _all_axes(walk: GraphWalk) -> list[NamedAxis]:
    """List parameter axes in the order of use, then those of parameters with a label for each element."""
    axes = [(name, dim, axis) for (name, dim), axis in walk.axes.items()]
    for name, labels in walk.elements.items():
        varying = walk.labels.varying(labels)
        if len(varying) > 1:
            walk.labels.freeze(labels, f"'{name}' ties channels along {len(varying)} axes")
        first = labels.movedim(varying[0] if varying else 0, 0).flatten(1)[:, 0]
        axes.append((name, varying[0] if varying else 0, Axis(first, {"follower"})))
    return axes


def _units(axes: list[NamedAxis], roots: np.ndarray, numbers: np.ndarray) -> _Units:
    """Sort the positions on all axes by unit."""
    labels = np.concatenate([np.empty(0, np.int64), *(axis.labels.numpy() for _, _, axis in axes)])
    sizes = [len(axis.labels) for _, _, axis in axes]
    owner = np.repeat(np.arange(len(axes)), sizes)
    position = np.concatenate([np.empty(0, np.int64), *(np.arange(size) for size in sizes)])
    free = (numbers[labels] < 0).nonzero()[0]
    free = free[np.lexsort((owner[free], roots[labels[free]]))]  # stable: positions stay in order
    root, owner = roots[labels[free]], owner[free]
    start = np.flatnonzero(np.diff(root, prepend=-1) | np.diff(owner, prepend=-1))
    length = np.diff(start, append=len(root))
    return _Units(root=root[start], axis=owner[start], start=start, length=length, position=position[free])


def _alike(units: _Units) -> list[np.ndarray]:
    """Return the numbers of the runs of each group, `(units, slices)`, in the order of use."""
    first = np.flatnonzero(np.diff(units.root, prepend=-1))
    pairs, groups = np.stack([units.axis, units.length], 1), {}
    for begin, end in zip(first, np.append(first, len(units.root))[1:], strict=True):
        groups.setdefault(pairs[begin:end].tobytes(), []).append(np.arange(begin, end))
    rows = [np.stack(members) for members in groups.values()]
    rows = [row[np.argsort(units.position[units.start[row[:, 0]]], kind="stable")] for row in rows]
    return sorted(rows, key=lambda row: (units.axis[row[0, 0]], units.position[units.start[row[0, 0]]]))


def _build(walk: GraphWalk, roots: np.ndarray, axes: list[NamedAxis], units: _Units, rows: np.ndarray) -> Group:
    """Build one group from its runs."""
    slices = []
    for column in rows.T:
        name, dim, axis = axes[units.axis[column[0]]]
        index = units.position[units.start[column][:, None] + np.arange(int(units.length[column[0]]))]
        slices.append(Slice(param=name, dim=dim, index=tuple(map(tuple, index.tolist())), role=_role(axis.roles)))
    first = next((piece for piece in slices if piece.role == "producer"), slices[0])
    literals = tuple(_literals(walk, roots, units.root[rows[:, 0]]))
    name = split_name(first.param)[0] or first.param
    return Group(name=name, num_units=len(rows), slices=tuple(slices), literals=literals)


def _literals(walk: GraphWalk, roots: np.ndarray, members: np.ndarray) -> Iterator[Literal]:
    """Yield the module attributes that count these units."""
    for use in walk.literals:
        counts = _counts(use.labels, roots, members)
        if any(counts):
            yield Literal(module=use.module, attribute=use.attribute, counts=counts)
    for uses in walk.widths.values():
        first, *others = (_counts(use.labels, roots, members) for use in uses)
        if any(first) and all(counts == first for counts in others):  # else calls differ, and it is true of none
            yield Literal(module=uses[0].module, attribute=uses[0].attribute, counts=first)


def _written(walk: GraphWalk, roots: np.ndarray, members: np.ndarray) -> tuple[Literal, ...]:
    """Return the sizes that count these units; none if one of them varies, or means different axes."""
    found: dict[tuple[int, str], Literal] = {}
    other: set[tuple[int, str]] = set()
    for use in (use for use in walk.sizes if not use.name.startswith("scale")):
        if len(use.labels) > 1 and len(np.unique(roots[use.labels.numpy()])) == 1:
            continue  # it is the size of each unit
        key, counts = (id(walk.modules[use.module]), use.name), _counts(use.labels, roots, members)
        literal = Literal(module=use.module, attribute=use.name, counts=counts)
        other |= {key} if found.setdefault(key, literal).counts != counts else set()
    if any(any(found[key].counts) for key in other):
        return ()
    return tuple(literal for literal in found.values() if any(literal.counts))


def _widths(walk: GraphWalk, roots: np.ndarray, heads: np.ndarray, num_units: int) -> tuple[Literal, ...]:
    """Return the sizes of heads, which a forward may compute from the width of the embedding; none falls with it."""
    names = {
        (use.module, use.name.replace("view", "width"))
        for use in walk.sizes
        if use.name.startswith("view") and np.isin(roots[use.labels.numpy()], heads).all()
    }
    return tuple(Literal(module=module, attribute=name, counts=(0,) * num_units) for module, name in sorted(names))


def _scales(walk: GraphWalk, roots: np.ndarray, members: np.ndarray) -> tuple[Literal, ...]:
    """Return the scales that torch computes from these units; none falls with them."""
    uses = [use for use in walk.sizes if use.name.startswith("scale") and any(_counts(use.labels, roots, members))]
    names = dict.fromkeys((use.module, use.name) for use in uses)
    return tuple(Literal(module=module, attribute=name, counts=(0,) * len(members)) for module, name in names)


def _counts(labels: Tensor, roots: np.ndarray, members: np.ndarray) -> tuple[int, ...]:
    """Return how many of some labels belong to each unit."""
    owners, order = roots[labels.numpy()], np.argsort(members)
    place = order[np.searchsorted(members, owners, sorter=order).clip(max=len(members) - 1)]
    return tuple(np.bincount(place[members[place] == owners], minlength=len(members)).tolist())


def _named(group: Group, names: dict[str, int]) -> Group:
    """Make the name unique."""
    number = names[group.name] = names.get(group.name, 0) + 1
    return group if number == 1 else replace(group, name=f"{group.name}#{number}")


def _role(roles: set[Role]) -> Role:
    """Return the role that counts: producer before consumer before follower."""
    for role in ("producer", "consumer"):
        if role in roles:
            return role
    return "follower"
