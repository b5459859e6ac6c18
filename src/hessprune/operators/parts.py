"""Operators that cut an axis: equal parts of a unit axis are tied, the sizes of unequal ones are written down."""

from typing import Any

from hessprune.foundation.written import WrittenSize
from hessprune.operators.call import Call
from hessprune.operators.labels import varies
from hessprune.operators.leaves import Leaf
from hessprune.operators.shape import run
from hessprune.operators.table import register


def split(call: Call) -> Any:
    """Tie equal parts of a unit axis position by position; pin unequal ones, whose sizes the source code fixes."""
    if isinstance(call.args[0], Leaf):
        return _parts_of_parameter(call, call.args[0])
    labels, dim, parts = call.walk.as_labels(call.args[0]), call.get("dim") or 0, list(run(call))
    if not varies(labels, dim):
        return parts
    if len({part.shape[dim] for part in parts}) > 1:
        call.pin(labels, dim, "it is split into parts of fixed, unequal size", spares_heads=True, cuts=True)
    else:
        for part in parts[1:]:
            call.labels.tie(parts[0], part)
    dim %= labels.dim()
    for part in parts:
        call.note_size(WrittenSize("split", dim, labels.dim(), part.shape[dim]), part)
    return parts


def _parts_of_parameter(call: Call, leaf: Leaf) -> list[Leaf]:
    """Return parts of a parameter; tie equal ones position by position, freeze unequal ones."""
    dim, parts, start = (call.get("dim") or 0) % len(leaf.shape), [], 0
    for part in call.produced:
        parts.append(leaf.part(dim, start, part.shape[dim]))
        start += part.shape[dim]
    axes = [call.walk.axis(part, dim, "follower") for part in parts]
    if len({len(axis) for axis in axes}) > 1:
        reason = f"it is split into parts of fixed, unequal size{call.where}"
        call.labels.freeze(call.walk.axis(leaf, dim, "follower"), reason)
    else:
        for axis in axes[1:]:
            call.labels.tie(axes[0], axis)
    return parts


register("chunk", "split_with_sizes", labels=split, derivative="piecewise-linear", integer="split")
register("split", labels=split, derivative="piecewise-linear", integer="split", overloads=("Tensor",))
register("tensor_split", "unsafe_chunk", "unsafe_split", labels=split, derivative="piecewise-linear")
