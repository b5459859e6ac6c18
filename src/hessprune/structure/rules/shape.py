"""Shape operators run literally on the label tensors; what fixes a size in the source code is pinned."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessprune._modules import ChannelPad
from hessprune.structure.labels import varies
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call, Leaf, LiteralUse, Value


@rule(
    "permute", "transpose", "t", "movedim", "swapaxes", "unsqueeze", "squeeze", "expand", "expand_as", "flip", "cat",
    "concat", "stack", "repeat", "tile", "broadcast_to", "numpy_T", "mT", "adjoint", "channel_shuffle",
)  # fmt: skip
def literal(call: Call) -> Any:
    """Do to the labels what the model does to the numbers."""
    return run(call)


def run(call: Call) -> Any:
    """Run the operator itself on label tensors."""
    args, kwargs = tree_map(
        lambda arg: call.walk.as_labels(arg) if isinstance(arg, Leaf | Value) else arg, (call.args, call.kwargs)
    )
    return call.node.target(*args, **kwargs)  # type: ignore[operator]


@rule("getitem")
def getitem(call: Call) -> Any:
    """Take one result of an operator that returns several."""
    return call.args[0][call.args[1]]


@rule(
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "view_as",
    "reshape_as",
    "pixel_shuffle",
    "pixel_unshuffle",
)
def reshape(call: Call) -> Tensor:
    """Execute literally; where one axis is split into several, remember the parts (they must stay a grid)."""
    labels = call.tensors()[0]
    if call.operator.startswith("pixel"):
        return run(call)
    out = labels.reshape(call.shape)
    for sources, targets in matched_axes(tuple(labels.shape), tuple(out.shape)):
        if len(targets) > 1 and any(varies(labels, dim) for dim in sources):
            call.walk.splits.append((out, targets))
    return out


def matched_axes(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pair runs of axes of two shapes that hold the same elements.

    Example:
        >>> matched_axes((2, 6, 5), (2, 3, 2, 5))
        [((0,), (0,)), ((1,), (1, 2)), ((2,), (3,))]
    """
    pairs, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        start_i, start_j, left, right = i, j, before[i], after[j]
        while left != right:
            if left < right:
                i += 1
                left *= before[i]
            else:
                j += 1
                right *= after[j]
        i, j = i + 1, j + 1
        pairs.append((tuple(range(start_i, i)), tuple(range(start_j, j))))
    return pairs


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(call: Call) -> Any:
    """Equal parts of a unit axis lose the same positions; unequal parts have sizes that the source code fixes."""
    labels, dim = call.tensors()[0], call.get("dim") or 0
    parts = run(call)
    if varies(labels, dim) and len(parts) > 1:
        if len({part.shape[dim] for part in parts}) > 1:
            call.labels.freeze(labels, f"it is split into parts of fixed, unequal size{call.where}")
        for part in parts[1:]:
            if part.shape == parts[0].shape:
                call.labels.tie(parts[0], part)
    return list(parts)


@rule("select", "unbind")
def take(call: Call) -> Any:
    """Taking index k of an axis fixes its size: what lies along it goes together."""
    call.labels.tie_along(call.tensors()[0], call.get("dim") or 0)
    return run(call)


@rule("slice", "narrow", "roll", "unfold", "index_select", "index", "gather", "take_along_dim", "rot90")
def positional(call: Call) -> Any:
    """Positions named in the source code: free over space, fixed over units."""
    labels = call.tensors()[0]
    for dim in _named_axes(call, labels):
        if isinstance(call.args[0], Leaf):  # a table: its rows stay, its columns may be units
            call.labels.tie_along(labels, dim)
            continue
        call.pin(labels, dim, f"'{call.operator}' names channels by position{call.where}")
    if call.operator in {"unfold", "gather", "take_along_dim"} or _has_unknown_index(call):
        return call.refuse(f"'{call.operator}'{call.where} has no rule for these arguments")
    args = tree_map(lambda arg: arg.tensor if isinstance(arg, Value) else arg, call.args)
    args = tree_map(lambda arg: call.walk.as_labels(arg) if isinstance(arg, Leaf) else arg, args)
    return call.node.target(*args, **call.kwargs)  # type: ignore[operator]


def _named_axes(call: Call, labels: Tensor) -> list[int]:
    if call.operator == "index":
        return [dim for dim, index in enumerate(call.args[1]) if index is not None]
    if call.operator == "slice":
        size, dim = labels.shape[call["dim"]], call["dim"]
        is_full = (
            (call.get("start") or 0) == 0 and (call.get("end") is None or call["end"] >= size) and call["step"] == 1
        )
        return [] if is_full else [dim]
    dims = call.get("dims") if call.operator in {"roll", "rot90"} else call.get("dim")
    return list(range(labels.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)


def _has_unknown_index(call: Call) -> bool:
    indices = (
        call.args[1] if call.operator == "index" else [call.get("index")] if call.operator == "index_select" else []
    )
    return any(isinstance(index, Tensor) for index in indices)


@rule(
    "pad",
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "replication_pad1d",
    "replication_pad2d",
    "_pad_circular",
)
def pad(call: Call) -> Any:
    """Padding space is free; padded channels are units of their own if the module can adjust how many there are."""
    labels, amounts = call.tensors()[0], call.named.get("pad") or call["padding"]
    padded = [dim for dim in range(labels.dim()) if _amount(amounts, labels.dim(), dim) != (0, 0)]
    for dim in padded:
        before, after = _amount(amounts, labels.dim(), dim)
        if not varies(labels, dim):
            size = labels.shape[dim] + before + after
            labels = labels.narrow(dim, 0, 1).expand(*labels.shape[:dim], size, *labels.shape[dim + 1 :])
        elif min(before, after) < 0:
            return call.refuse(f"channels are cropped by a negative pad{call.where}")
        else:
            labels = _pad_channels(call, labels, dim, before, after)
    return labels


def _pad_channels(call: Call, labels: Tensor, dim: int, before: int, after: int) -> Tensor:
    parts = [labels]
    for amount, attribute, place in ((before, "before", 0), (after, "after", 2)):
        if amount:
            new = call.labels.new(amount)
            shape = [1] * labels.dim()
            shape[dim] = amount
            parts.insert(place, new.view(shape).expand(*labels.shape[:dim], amount, *labels.shape[dim + 1 :]))
            if isinstance(call.walk.modules.get(call.module), ChannelPad):
                call.walk.literals.append(LiteralUse(module=call.module, attribute=attribute, labels=new))
            else:
                call.labels.freeze(new, f"it is padded with a fixed number of channels{call.where}")
    return torch.cat(parts, dim)


def _amount(amounts: list[int], ndim: int, dim: int) -> tuple[int, int]:
    at = 2 * (ndim - 1 - dim)
    return (amounts[at], amounts[at + 1]) if at < len(amounts) else (0, 0)
