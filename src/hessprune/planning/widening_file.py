"""Widenings as nested JSON values: writing, and reading with checks of every value."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hessprune.errors import CheckpointError
from hessprune.foundation.formatting import shown
from hessprune.planning.inputs import InputSpec, check_tree
from hessprune.planning.packing import check_apart, group_from_json, group_to_json, is_count, require
from hessprune.planning.reading import incomplete, read_cost, read_shapes, read_units

if TYPE_CHECKING:
    from hessprune.planning.widening import Widening

FORMAT = 1


def widening_values(widening: "Widening") -> dict[str, Any]:
    """Return a widening as nested JSON values."""
    return {
        "kind": "widening",
        "format": FORMAT,
        "cost_before": asdict(widening.cost_before),
        "cost_after": asdict(widening.cost_after),
        "inputs": widening.inputs.tree,
        "provenance": dict(widening.provenance),
        "added": {name: list(units) for name, units in widening.added.items()},
        "parents": {name: list(units) for name, units in widening.parents.items()},
        "shapes": {name: list(shape) for name, shape in widening.shapes.items()},
        "groups": [group_to_json(group) for group in widening.groups],
    }


def widening_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of a widening from nested JSON values.

    Raises:
        CheckpointError: It is no widening, or holds impossible units or positions.
    """
    try:
        require(data["kind"] == "widening" and data["format"] == FORMAT, f"the kind {shown(data['kind'])}")
        groups = tuple(group_from_json(item) for item in data["groups"])
        check_apart(groups)
        fields: dict[str, Any] = {
            "groups": groups,
            "added": read_units(data["added"], groups),
            "parents": {name: tuple(units) for name, units in data["parents"].items()},
            "cost_before": read_cost(data["cost_before"]),
            "cost_after": read_cost(data["cost_after"]),
            "inputs": InputSpec(tree=check_tree(data["inputs"])),
            "provenance": dict(data["provenance"]),
            "shapes": _shapes(data["shapes"]),
        }
        for group in groups:
            added, parents = (fields[zone].get(group.name, ()) for zone in ("added", "parents"))
            fits = len(added) == len(parents) and {*range(group.num_units)} - {*added} >= {*parents}
            require(fits, f"impossible parents in group {shown(group.name)}")
        read_shapes(shapes_after(fields), groups)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(incomplete(error)) from error
    return fields


def shapes_after(fields: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors once `added` units of `groups` are in them."""
    more: dict[tuple[str, int], int] = {}
    for group in fields["groups"]:
        for piece in group.slices:
            axis, width = (piece.param, piece.dim), len(piece.index[0])
            more[axis] = more.get(axis, 0) + width * len(fields["added"].get(group.name, ()))
    return {
        name: tuple(size + more.get((name, dim), 0) for dim, size in enumerate(shape))
        for name, shape in fields["shapes"].items()
    }


def _shapes(data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    require(all(is_count(size) for shape in data.values() for size in shape), "impossible shapes")
    return {name: tuple(shape) for name, shape in data.items()}
