"""Parts of plans and widenings that are read from JSON, each with a check of its values."""

import json
from collections.abc import Mapping
from typing import Any

from hessprune.costs.model import Cost
from hessprune.errors import CheckpointError
from hessprune.foundation.formatting import shown
from hessprune.planning.packing import is_count, require
from hessprune.structure.groups import Group


def read_units(data: Mapping[str, Any], groups: tuple[Group, ...]) -> dict[str, tuple[int, ...]]:
    """Return units by group name; each is an integer within its group, once."""
    sizes = {group.name: group.num_units for group in groups}
    require(len(sizes) == len(groups), "two groups of the same name")
    for name, units in data.items():
        require(name in sizes, f"units of the unknown group {shown(name)}")
        wrong = [unit for unit in units if not is_count(unit) or unit >= sizes[name]]
        require(not wrong, f"the units {shown(wrong[:4])} in group {shown(name)}, which has {sizes[name]}")
        require(len(set(units)) == len(units), f"doubled units in group {shown(name)}")
    return {name: tuple(units) for name, units in data.items()}


def read_cost(data: Mapping[str, Any]) -> Cost:
    """Return a cost of counts."""
    require(all(map(is_count, data.values())), f"the cost {shown(dict(data))}")
    return Cost(**data)


def read_shapes(data: Mapping[str, Any], groups: tuple[Group, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors; where there are any, all slices lie within them."""
    require(all(is_count(size) for shape in data.values() for size in shape), "impossible shapes")
    shapes = {name: tuple(shape) for name, shape in data.items()}
    for piece in (piece for group in groups for piece in group.slices if shapes):
        shape = shapes.get(piece.param, ())
        fits = piece.dim < len(shape) and max(map(max, piece.index)) < shape[piece.dim]
        require(fits, f"the shape {shown(shape)} of {shown(piece.param)}, too small for its slices")
    return shapes


def parsed(text: str) -> dict[str, Any]:
    """Return JSON text as nested values.

    Raises:
        CheckpointError: The text is truncated, or no object.
    """
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(incomplete(error)) from error
    require(isinstance(data, dict), f"{shown(data)}")
    return data


def incomplete(error: Exception) -> str:
    """Word the error for a file that cannot be read, after the one that reading it raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    short = text if len(text) <= 120 else f"{text[:120]}…"
    return f"the plan or widening must be complete JSON written by hessprune, got {short}. Save it again."
