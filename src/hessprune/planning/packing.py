"""Groups as readable JSON: runs of consecutive positions are written as their start and width."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from hessprune.errors import CheckpointError
from hessprune.foundation.files import sha256
from hessprune.foundation.formatting import shown
from hessprune.operators.leaves import Role
from hessprune.structure.groups import KINDS, Group, Literal, Slice

MOST_UNITS = 10_000_000
"""Of one group: more are a damaged file."""
MOST_POSITIONS = 2**20
"""Of one slice: a run of positions takes a line in the file, and any memory once it is read."""


def group_to_json(group: Group) -> dict[str, Any]:
    """Return a group as nested JSON values."""
    slices = [{**_fields(piece), "index": _pack(piece.index)} for piece in group.slices]
    literals = [{**_fields(item), "counts": list(item.counts)} for item in group.literals]
    facts = {"name": group.name, "kind": group.kind, "num_units": group.num_units}
    return facts | {"slices": slices, "literals": literals}


def group_from_json(data: Mapping[str, Any]) -> Group:
    """Read a group that `group_to_json` wrote.

    Raises:
        CheckpointError: A number of units, a slice or a literal is not possible.
    """
    name, units, slices, literals = (data[key] for key in ("name", "num_units", "slices", "literals"))
    require(
        isinstance(name, str) and is_count(units) and 0 < units <= MOST_UNITS,
        f"{shown(units)} units in group {shown(name)}",
    )
    kind = data.get("kind", "channels")  # as in files of version 0.1
    require(kind in KINDS, f"kind {shown(kind)} of group {shown(name)}")
    require(isinstance(slices, list) and len(slices) > 0, f"group {shown(name)} without slices")
    require(isinstance(literals, list), f"literals {shown(literals)} of group {shown(name)}")
    return Group(
        name=name,
        num_units=units,
        slices=tuple(_slice(piece, units) for piece in slices),
        literals=tuple(_literal(item, units) for item in literals),
        kind=kind,
    )


def check_apart(groups: Sequence[Group]) -> None:
    """Raise unless every position of a tensor belongs to one unit, and every attribute is counted once by a group.

    Raises:
        CheckpointError: Two slices share a position, or a group counts an attribute twice.
    """
    taken: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        counted = [(item.module, item.attribute) for item in group.literals]
        require(len(set(counted)) == len(counted), f"doubled literals of group {shown(group.name)}")
        for piece in group.slices:
            before = taken.setdefault((piece.param, piece.dim), set())
            positions = {position for row in piece.index for position in row}
            require(before.isdisjoint(positions), f"{shown(piece.param)} in dim {piece.dim} in two slices at once")
            before |= positions


def digest(groups: Sequence[Group]) -> str:
    """Return a SHA-256 over all slices and literals of groups."""
    return sha256(json.dumps([group_to_json(group) for group in groups]))


def require(condition: bool, description: str) -> None:
    """Raise where a value of the file is not possible.

    Raises:
        CheckpointError: The condition does not hold.
    """
    if not condition:
        raise CheckpointError(
            f"the plan or widening must be complete JSON written by hessprune, got {description}. Save it again."
        )


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 0 (True and False are none)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fields(value: Slice | Literal) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _pack(index: tuple[tuple[int, ...], ...]) -> Any:
    """Write consecutive positions as `{"start", "width"}`: the usual case, which keeps the file readable."""
    width, start = len(index[0]), index[0][0]
    if all(row == tuple(range(start + u * width, start + (u + 1) * width)) for u, row in enumerate(index)):
        return {"start": start, "width": width}
    return [list(row) for row in index]


def _slice(data: Mapping[str, Any], num_units: int) -> Slice:
    piece = Slice(**{**data, "index": _unpack(data["index"], num_units)})
    positions = [position for row in piece.index for position in row]
    require(isinstance(piece.param, str) and is_count(piece.dim), f"dim {shown(piece.dim)} of {shown(piece.param)}")
    require(piece.role in get_args(Role), f"the role {shown(piece.role)} of {shown(piece.param)}")
    widths = {len(row) for row in piece.index}
    require(
        len(piece.index) == num_units and len(widths) == 1 and 0 not in widths and all(map(is_count, positions)),
        f"impossible positions of {shown(piece.param)} in dim {piece.dim}",
    )
    require(len(set(positions)) == len(positions), f"doubled positions of {shown(piece.param)} in dim {piece.dim}")
    return piece


def _literal(data: Mapping[str, Any], num_units: int) -> Literal:
    item = Literal(**{**data, "counts": tuple(data["counts"])})
    require(
        isinstance(item.module, str)
        and isinstance(item.attribute, str)
        and len(item.counts) == num_units
        and all(map(is_count, item.counts)),
        f"impossible counts of {shown(f'{item.module}.{item.attribute}')}",
    )
    return item


def _unpack(packed: Any, num_units: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(packed, dict):
        start, width = packed["start"], packed["width"]
        is_run = is_count(start) and is_count(width) and width > 0
        require(is_run and max(width * num_units, start) <= MOST_POSITIONS, f"positions {shown(packed)}")
        return tuple(tuple(range(start + u * width, start + (u + 1) * width)) for u in range(num_units))
    return tuple(tuple(row) for row in packed)
