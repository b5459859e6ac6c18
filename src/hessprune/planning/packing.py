"""Groups as readable JSON: runs of consecutive positions are written by where they start."""

from collections.abc import Mapping
from typing import Any

from hessprune.structure.groups import Group, Literal, Slice


def group_to_json(group: Group) -> dict[str, Any]:
    """Return a group as nested JSON values."""
    slices = [{**_fields(piece), "index": _pack(piece.index)} for piece in group.slices]
    literals = [{**_fields(item), "counts": list(item.counts)} for item in group.literals]
    return {"name": group.name, "num_units": group.num_units, "slices": slices, "literals": literals}


def group_from_json(data: Mapping[str, Any]) -> Group:
    """Read back what `group_to_json` wrote."""
    units = data["num_units"]
    return Group(
        name=data["name"],
        num_units=units,
        slices=tuple(Slice(**{**piece, "index": _unpack(piece["index"], units)}) for piece in data["slices"]),
        literals=tuple(Literal(**{**item, "counts": tuple(item["counts"])}) for item in data["literals"]),
    )


def _fields(value: Slice | Literal) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _pack(index: tuple[tuple[int, ...], ...]) -> Any:
    """Write consecutive positions as `{"start", "width"}`: the usual case, and it keeps the file readable."""
    width, start = len(index[0]), index[0][0]
    if all(row == tuple(range(start + u * width, start + (u + 1) * width)) for u, row in enumerate(index)):
        return {"start": start, "width": width}
    return [list(row) for row in index]


def _unpack(packed: Any, num_units: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(packed, dict):
        start, width = packed["start"], packed["width"]
        return tuple(tuple(range(start + u * width, start + (u + 1) * width)) for u in range(num_units))
    return tuple(tuple(row) for row in packed)
