"""Shape operators: they run literally on label tensors, and axes whose size the source code fixes are pinned."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessprune.foundation.padding import ChannelPad
from hessprune.foundation.written import WrittenSize
from hessprune.operators.call import Call
from hessprune.operators.convolution import over_space
from hessprune.operators.labels import along, constant, removable, varies, varying
from hessprune.operators.leaves import Leaf
from hessprune.operators.table import register


def permutation(call: Call) -> Any:
    """Permute the axes of labels or of a parameter."""
    if isinstance(call.args[0], Leaf):
        return call.args[0].moved(lambda marked: call.target(marked, *call.args[1:], **call.kwargs))
    return run(call)


register("permute", "transpose", labels=permutation, derivative="piecewise-linear", integer="move")
register(
    "t", "movedim", "swapaxes", "numpy_T", "mT", "adjoint", labels=permutation, derivative="piecewise-linear"
)  # fmt: skip


def run(call: Call) -> Any:
    """Apply the operator to the labels as the model applies it to the numbers."""
    args, kwargs = tree_map(call.walk.as_labels, (call.args, call.kwargs))
    return call.target(*args, **kwargs)


def copied(call: Call) -> Any:
    """Copy the labels; what no unit lies in and is copied along the axis of heads goes with what it meets there."""
    labels, out = call.walk.as_labels(call.args[0]), run(call)
    size = labels.shape[1 - out.dim() + labels.dim()] if out.dim() < labels.dim() + 2 else 1
    is_mask = out.dim() > 2 and size == 1 < out.shape[1] and not removable(labels)
    return along(call.labels.new(out.shape[1]), 1, out.shape) if is_mask else out


def complex_view(call: Call) -> Tensor:
    """Read pairs of numbers as complex ones: both stand for one channel."""
    labels = call.walk.as_labels(call.args[0])
    call.labels.tie_along(labels, -1)
    return labels[..., 0]


def real_view(call: Call) -> Tensor:
    """Read complex numbers as pairs, along a new axis."""
    return call.walk.as_labels(call.args[0]).unsqueeze(-1).expand(call.shape)


register("view_as_complex", labels=complex_view, derivative="piecewise-linear")
register("view_as_real", labels=real_view, derivative="piecewise-linear")


def expand(call: Call) -> Any:
    """Expand the labels."""
    out = copied(call)
    for dim in varying(out):
        call.note_size(WrittenSize("expand", dim, out.dim(), out.shape[dim]), out)
    return out


def expand_as(call: Call) -> Any:
    """Tie axes to those that give them their sizes."""
    return call.meet(call.tensors()).expand(call.shape)


register("expand", "broadcast_to", labels=expand, derivative="piecewise-linear")
register("expand_as", labels=expand_as, derivative="piecewise-linear")
register("repeat", "tile", "repeat_interleave", labels=copied, derivative="piecewise-linear")
register("flip", "diagonal", labels=run, derivative="piecewise-linear")


def getitem(call: Call) -> Any:
    """Take one of several outputs, as it is."""
    values, at = call.args
    return values[at] if isinstance(values, tuple | list) else run(call)


register("getitem", labels=getitem, derivative="piecewise-linear", integer="move")


def reshape(call: Call) -> Any:
    """Reshape the labels; where one axis is split into several, require that they stay a grid."""
    if isinstance(call.args[0], Leaf) and (moved := call.args[0].reshaped(call.shape)) is not None:
        return moved
    labels = call.walk.as_labels(call.args[0])
    out = labels.reshape(call.shape)
    for sources, targets in matched_axes(tuple(labels.shape), tuple(out.shape)):
        if any(varies(labels, dim) for dim in sources):
            if len(targets) > 1:
                call.walk.closure.split(out, targets)
            if call.operator in _NAMING:
                _note_sizes(call, labels, out, list(sources), list(targets))
    return out


def _note_sizes(call: Call, labels: Tensor, out: Tensor, sources: list[int], targets: list[int]) -> None:
    """Note the sizes of axes made from others; where the batch lies outside of the units, they vary.

    An axis of size 1 counts no units: it is the batch of an example of one sample, say.
    """
    run = (sources[0], sources[-1] + 1, labels.dim(), targets[0], targets[-1] + 1)
    for dim in (dim for dim in targets if out.shape[dim] > 1):
        written = WrittenSize("view", dim, out.dim(), out.shape[dim], run)
        call.note_size(written, out, is_open=not varies(labels, sources[0]))


_NAMING = {"view", "reshape", "_unsafe_view", "unflatten"}
"""Operators that name the sizes of their results."""


register("reshape", "flatten", "unsqueeze", labels=reshape, derivative="piecewise-linear", integer="move")
register("squeeze", labels=reshape, derivative="piecewise-linear", integer="move", overloads=("dim",))
register("view", labels=reshape, derivative="piecewise-linear", integer="move", overloads=("default",))  # or by type
register("_unsafe_view", "unflatten", "view_as", "reshape_as", labels=reshape, derivative="piecewise-linear")


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


def cat(call: Call) -> Tensor:
    """Put parts side by side; tie them along the other axes, where they have the same size."""
    parts, dim = [call.walk.as_labels(part) for part in call["tensors"]], call.get("dim") or 0
    if call.operator == "stack":
        parts = [part.unsqueeze(dim) for part in parts]
    parts = [part for part in parts if part.dim() == len(call.shape)]  # torch skips empty vectors
    first = [part.narrow(dim, 0, 1) for part in parts if part.shape[dim]]
    sections = [part if varying(part) else constant(part.shape) for part in first]
    for section in sections[1:]:
        call.walk.closure.meet(sections[0], section, f"it is concatenated{call.where}")
    return torch.cat(parts, dim)


register("cat", labels=cat, derivative="piecewise-linear", integer="join")
register("stack", labels=cat, derivative="piecewise-linear")


def channel_shuffle(call: Call) -> Tensor:
    """Tie `groups` equal parts position by position, then interleave them."""
    grid = call.walk.as_labels(call.args[0]).unflatten(1, (call["groups"], -1))
    call.labels.tie_along(grid, 1)
    return grid.transpose(1, 2).reshape(call.shape)


register("channel_shuffle", labels=channel_shuffle, derivative="piecewise-linear")


def pixel_shuffle(call: Call) -> Tensor:
    """Follow `(N, C·r², H, W) → (N, C, H·r, W·r)`: tie the channels that become one."""
    grid = over_space(call, call.walk.as_labels(call.args[0]), 2).unflatten(-3, (call.shape[-3], -1))
    call.labels.tie_along(grid, -3)
    return grid[..., 0, :, :].expand(call.shape)


register("pixel_shuffle", labels=pixel_shuffle, derivative="piecewise-linear")


def pixel_unshuffle(call: Call) -> Tensor:
    """Follow `(N, C, H·r, W·r) → (N, C·r², H, W)`: tie the channels that come from one."""
    labels = over_space(call, call.walk.as_labels(call.args[0]), 2)
    return labels.repeat_interleave(call["downscale_factor"] ** 2, -3).expand(call.shape)


register("pixel_unshuffle", labels=pixel_unshuffle, derivative="piecewise-linear")


def pad(call: Call) -> Any:
    """Pad the labels; padded channels are units of their own if a module holds their number, and fixed otherwise."""
    labels, amounts = call.walk.as_labels(call.args[0]), call.get("pad") or call["padding"]
    for dim in range(labels.dim()):
        before, after = _amount(amounts, labels.dim(), dim)
        if (before or after) and varies(labels, dim):
            labels = call.labels.resolve(labels)  # what other operators have tied does not vary
        if not varies(labels, dim):
            labels = labels.narrow(dim, 0, 1).expand(*call.shape[: dim + 1], *labels.shape[dim + 1 :])
        elif min(before, after) < 0:
            return call.refuse(f"channels are cropped by a negative pad{call.where}")
        else:
            labels = torch.cat([
                _padding(call, labels, dim, "before", before),
                labels,
                _padding(call, labels, dim, "after", after),
            ], dim)  # fmt: skip
    return labels


register("pad", "constant_pad_nd", labels=pad, derivative="piecewise-linear", integer="move")
register(
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "_pad_circular",
    labels=pad, derivative="piecewise-linear",
)  # fmt: skip


def _padding(call: Call, labels: Tensor, dim: int, attribute: str, amount: int) -> Tensor:
    """Return labels for padded channels: counted by the module that pads, or fixed."""
    shape = [amount if other == dim else size for other, size in enumerate(labels.shape)]
    if not isinstance(call.walk.modules.get(call.module), ChannelPad):
        return call.labels.fixed(shape, f"it is padded with a fixed number of channels{call.where}")
    new = call.labels.new(amount)
    call.walk.count(call.module, attribute, new)
    return along(new, dim, shape)


def _amount(amounts: list[int], ndim: int, dim: int) -> tuple[int, int]:
    """Return the padding before and behind an axis; torch lists the last axis first."""
    at = 2 * (ndim - 1 - dim)
    return (amounts[at], amounts[at + 1]) if at < len(amounts) else (0, 0)
