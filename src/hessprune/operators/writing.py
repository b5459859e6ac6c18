"""Operators that write rows to computed positions, as experts do with the rows that they were sent."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from hessprune.operators.call import Call
from hessprune.operators.leaves import Leaf
from hessprune.operators.positions import index_shapes, looked_up_along
from hessprune.operators.table import register


def put(call: Call) -> Any:
    """Write rows to computed positions: units along the other axes of both tensors are tied."""
    labels = call.walk.as_labels(call.args[0])
    written = call.walk.as_labels(call["values"] if call.operator == "index_put" else call["source"])
    if call.operator == "index_put":
        shapes = index_shapes(call)
        named, rest = range(len(shapes)), labels.dim() - len(shapes)
        if None in shapes or written.dim() < rest:
            return call.refuse(f"'{call.operator}'{call.where} writes to computed positions")
        rows = range(written.dim() - rest)
    else:
        named = rows = [call["dim"] % labels.dim()]
    for part, axes in ((labels, named), (written, rows)):
        for axis in axes:
            call.pin(part, axis, f"'{call.operator}' writes to computed positions")
    for index in [call.get("index"), *(call.get("indices") or ())]:
        if isinstance(index, Tensor | Leaf):
            call.walk.freeze(index, f"it holds positions for '{call.operator}'{call.where}")
    one, other = _first_along(labels, named), _first_along(written, rows)
    other = other.reshape(other.shape[len(rows) :]) if call.operator == "index_put" else other
    return call.meet([one, other]).expand(call.shape)


def _first_along(labels: Tensor, axes: Iterable[int]) -> Tensor:
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def scatter(call: Call) -> Any:
    """Write values to computed positions along an axis: units along others are tied, unless a part is written alone."""
    reason, index = f"'{call.operator}' writes to computed positions", call.walk.as_labels(call["index"])
    source = call["src"] if isinstance(call.get("src"), Tensor | Leaf) else None
    parts = [call.walk.as_labels(part) for part in (call.args[0], source) if part is not None]
    for axis, size in enumerate(index.shape):
        for number, part in enumerate(parts):
            if axis == call["dim"] % index.dim() or part.shape[axis] != size:
                call.pin(part, axis, reason)
                parts[number] = part.narrow(axis, 0, 1)
    return call.meet([*parts, looked_up_along(call, index)]).expand(call.shape)


register("scatter", "scatter_add", labels=scatter, derivative="piecewise-linear")
register("scatter_reduce", labels=scatter)
register("index_add", "index_copy", "index_put", labels=put, derivative="piecewise-linear")
