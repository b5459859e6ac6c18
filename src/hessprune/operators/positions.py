"""Operators that take values at positions, which the source code names or the forward computes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessprune.foundation.written import WrittenSize
from hessprune.operators.call import Call
from hessprune.operators.labels import along, constant, varies, varying
from hessprune.operators.leaves import Leaf, Value
from hessprune.operators.table import register


def positional(call: Call) -> Any:
    """Pin the axes whose positions the source code names; over space such positions are free."""
    table = _table(call)
    labels = call.walk.as_labels(call.args[0]) if table is None else table
    for dim in _named_axes(call, labels):
        is_slice = call.operator == "slice" and call["step"] == 1
        call.pin(labels, dim, f"'{call.operator}' names channels by position", spares_heads=is_slice)
        if is_slice and varies(labels, dim):
            _note_bounds(call, labels, dim % labels.dim())
    indices = [call.get("index"), *(call.get("indices") or ())]
    if any(isinstance(index, Tensor | Leaf) for index in indices):
        if isinstance(call.args[0], Leaf) and table is None:
            return call.refuse(f"'{call.operator}'{call.where} looks channels up by a computed index")
        return _looked_up(call, labels)
    arguments = tree_map(lambda arg: arg.tensor if isinstance(arg, Value) else arg, (call.args[1:], call.kwargs))
    return call.target(labels, *arguments[0], **arguments[1])


register("slice", labels=positional, derivative="piecewise-linear", integer="move")
register(
    "select", "unbind", "narrow", "roll", "rot90", "index", "index_select",
    labels=positional, derivative="piecewise-linear",
)  # fmt: skip


def _table(call: Call) -> Tensor | None:
    """Return the labels of a matrix of parameters whose rows, or columns, are looked up by number, as in an embedding.

    What is looked up stays, and units lie along the other axis. None for all else.
    """
    table = call.args[0]
    if call.operator not in {"index", "index_select"} or not isinstance(table, Leaf):
        return None
    indices = call.node.args[1] if call.operator == "index" else [None] * call["dim"] + [call.node.args[2]]
    found = [dim for dim, index in enumerate(indices) if index is not None]  # type: ignore[arg-type]
    others = [dim for dim, size in enumerate(table.shape) if size > 1 and dim not in found]
    if len(found) != 1 or len(others) != 1 or _dtype(indices[found[0]]) in (torch.bool, torch.uint8):  # type: ignore[index]
        return None
    call.labels.freeze(call.walk.axis(table, found[0], "consumer"), "its rows are looked up by number")
    return along(call.walk.axis(table, others[0], "follower"), others[0], table.shape)


def _dtype(index: Any) -> torch.dtype | None:
    return getattr(getattr(index, "meta", {}).get("val"), "dtype", None)


def _looked_up(call: Call, labels: Tensor) -> Tensor:
    """Return the labels at computed positions: those at the first one, since the axis that is looked up stays whole."""
    indices = [call["index"]] if call.operator == "index_select" else call["indices"]
    for index in indices:
        if isinstance(index, Tensor | Leaf):
            call.walk.freeze(index, f"it holds positions for '{call.operator}'{call.where}")
    if call.operator == "index_select":
        return labels.narrow(call["dim"], 0, 1).expand(call.shape)
    shapes = index_shapes(call)
    return call.target(labels, [shape and torch.zeros(shape, dtype=torch.int64, device="cpu") for shape in shapes])


def index_shapes(call: Call) -> list[torch.Size | None]:
    """Return the shape of the index along each axis; a mask stands for an index along each of its axes."""
    shapes: list[torch.Size | None] = []
    for index, node in zip(call["indices"], call.node.args[1], strict=True):  # type: ignore[arg-type]
        shape = None if index is None else call.walk.as_labels(index).shape
        is_mask = shape is not None and _dtype(node) in (torch.bool, torch.uint8)
        shapes += [call.shape[len(shapes) : len(shapes) + 1]] * len(shape) if is_mask and shape else [shape]
    return shapes


def _note_bounds(call: Call, labels: Tensor, dim: int) -> None:
    """Note the whole size of a sliced axis, and the sizes in front of both ends of the slice."""
    whole = labels.shape[dim]
    for bound in {whole, *slice(call.get("start"), call.get("end")).indices(whole)[:2]} - {0}:
        call.note_size(WrittenSize("slice", dim, labels.dim(), bound), labels.narrow(dim, 0, bound))


def _named_axes(call: Call, labels: Tensor) -> list[int]:
    """Return the axes along which the call names positions."""
    if call.operator == "index":
        return [dim for dim, shape in enumerate(index_shapes(call)) if shape is not None]
    if call.operator == "slice":
        size, end = labels.shape[call["dim"]], call.get("end")
        is_full = (call.get("start") or 0) in (0, -size) and (end is None or end >= size) and call["step"] == 1
        return [] if is_full else [call["dim"]]
    dims = call.get("dims") if call.operator in {"roll", "rot90"} else call.get("dim") or 0
    return list(range(labels.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)


def windows(call: Call) -> Tensor:
    """Pin the axis along which windows slide."""
    labels, dim = call.walk.as_labels(call.args[0]), call["dimension"]
    call.pin(labels, dim, "'unfold' slides over its channels")
    return labels.narrow(dim, 0, 1).unsqueeze(-1).expand(call.shape)


register("unfold", labels=windows, derivative="piecewise-linear")


def gather(call: Call) -> Tensor:
    """Pin the axis along which values are looked up at computed positions."""
    labels, index = (call.walk.as_labels(arg) for arg in call.args if isinstance(arg, Tensor | Leaf | Value))
    call.pin(labels, call["dim"], f"'{call.operator}' looks channels up by a computed index")
    for dim, size in enumerate(call.shape):
        labels = labels.narrow(dim, 0, 1 if dim == call["dim"] % labels.dim() else min(size, labels.shape[dim]))
    return call.meet([labels, looked_up_along(call, index)]).expand(call.shape)


def looked_up_along(call: Call, index: Tensor) -> Tensor:
    """Return the labels of positions along an axis: of units along other axes, each has its own; all else is frozen."""
    axes = varying(index)
    if axes and call["dim"] % index.dim() not in axes:
        return index.narrow(call["dim"], 0, 1)
    call.walk.freeze(index, f"it holds positions for '{call.operator}'{call.where}")
    return constant([1] * index.dim())


register("gather", "take_along_dim", labels=gather, derivative="piecewise-linear")
