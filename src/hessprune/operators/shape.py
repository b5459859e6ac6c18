"""Shape operators run literally on the label tensors; what fixes a size in the source code is pinned."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hessprune.foundation.padding import ChannelPad
from hessprune.operators.call import Call
from hessprune.operators.convolution import over_space
from hessprune.operators.labels import along, constant, varies, varying
from hessprune.operators.leaves import Leaf, Value
from hessprune.operators.table import rule


@rule("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT", "adjoint")
def permutation(call: Call) -> Any:
    """Move whole axes; of a parameter, too."""
    if isinstance(call.args[0], Leaf):
        return call.args[0].moved(lambda marked: call.target(marked, *call.args[1:], **call.kwargs))
    return run(call)


@rule("expand", "expand_as", "broadcast_to", "flip", "repeat", "tile", "repeat_interleave", "diagonal", "getitem")
def run(call: Call) -> Any:
    """Do to the labels what the model does to the numbers."""
    args, kwargs = tree_map(call.walk.as_labels, (call.args, call.kwargs))
    return call.target(*args, **kwargs)


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "unsqueeze", "squeeze")
def reshape(call: Call) -> Any:
    """Execute literally; where one axis is split into several, remember the parts (they must stay a grid)."""
    if isinstance(call.args[0], Leaf) and (moved := call.args[0].reshaped(call.shape)) is not None:
        return moved
    labels = call.walk.as_labels(call.args[0])
    out = labels.reshape(call.shape)
    for sources, targets in matched_axes(tuple(labels.shape), tuple(out.shape)):
        if len(targets) > 1 and any(varies(labels, dim) for dim in sources):
            call.walk.closure.split(out, targets)
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


@rule("cat", "concat", "concatenate", "stack")
def cat(call: Call) -> Tensor:
    """Put parts side by side; along the other axes they have the same size, so there the same units go."""
    parts, dim = [call.walk.as_labels(part) for part in call["tensors"]], call.get("dim") or 0
    if call.operator == "stack":
        parts = [part.unsqueeze(dim) for part in parts]
    parts = [part for part in parts if part.dim() == len(call.shape)]  # torch skips empty vectors
    first = [part.narrow(dim, 0, 1) for part in parts if part.shape[dim]]
    sections = [part if varying(part) else constant(part.shape) for part in first]
    for section in sections[1:]:
        call.walk.closure.meet(sections[0], section, f"it is concatenated{call.where}")
    return torch.cat(parts, dim)


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(call: Call) -> Any:
    """Equal parts of a unit axis lose the same positions; unequal parts have sizes that the source code fixes."""
    labels, dim, parts = call.walk.as_labels(call.args[0]), call.get("dim") or 0, list(run(call))
    if len({part.shape[dim] for part in parts}) > 1:
        call.pin(labels, dim, "it is split into parts of fixed, unequal size")
    elif varies(labels, dim):
        for part in parts[1:]:
            call.labels.tie(parts[0], part)
    return parts


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> Tensor:
    """Deal out `groups` equal parts in turn: they lose the same positions."""
    grid = call.walk.as_labels(call.args[0]).unflatten(1, (call["groups"], -1))
    call.labels.tie_along(grid, 1)
    return grid.transpose(1, 2).reshape(call.shape)


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> Tensor:
    """`(N, C·r², H, W) → (N, C, H·r, W·r)`: the channels that make one go together."""
    grid = over_space(call, call.walk.as_labels(call.args[0]), 2).unflatten(-3, (call.shape[-3], -1))
    call.labels.tie_along(grid, -3)
    return grid[..., 0, :, :].expand(call.shape)


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Tensor:
    """`(N, C, H·r, W·r) → (N, C·r², H, W)`: the channels made from one go together."""
    labels = over_space(call, call.walk.as_labels(call.args[0]), 2)
    return labels.repeat_interleave(call["downscale_factor"] ** 2, -3).expand(call.shape)


@rule("select", "unbind", "slice", "narrow", "roll", "rot90", "index", "index_select")
def positional(call: Call) -> Any:
    """Positions named in the source code: free over space, fixed over units."""
    labels = call.walk.as_labels(call.args[0])
    for dim in _named_axes(call, labels):
        call.pin(labels, dim, f"'{call.operator}' names channels by position")
    indices = [call.get("index"), *(call.get("indices") or ())]
    if any(isinstance(index, Tensor | Leaf) for index in indices):
        return call.refuse(f"'{call.operator}'{call.where} looks channels up by a computed index")
    known = tree_map(lambda arg: arg.tensor if isinstance(arg, Value) else arg, (call.args[1:], call.kwargs))
    return call.target(labels, *known[0], **known[1])


def _named_axes(call: Call, labels: Tensor) -> list[int]:
    if call.operator == "index":
        return [dim for dim, index in enumerate(call["indices"]) if index is not None]
    if call.operator == "slice":
        size, end = labels.shape[call["dim"]], call.get("end")
        is_full = (call.get("start") or 0) in (0, -size) and (end is None or end >= size) and call["step"] == 1
        return [] if is_full else [call["dim"]]
    dims = call.get("dims") if call.operator in {"roll", "rot90"} else call.get("dim") or 0
    return list(range(labels.dim())) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)


@rule("unfold")
def windows(call: Call) -> Tensor:
    """Windows that slide along one axis."""
    labels, dim = call.walk.as_labels(call.args[0]), call["dimension"]
    call.pin(labels, dim, "'unfold' slides over its channels")
    return labels.narrow(dim, 0, 1).unsqueeze(-1).expand(call.shape)


@rule("gather", "take_along_dim")
def gather(call: Call) -> Tensor:
    """Look up along one axis at computed positions, which are no units themselves."""
    labels, index = (call.walk.as_labels(arg) for arg in call.args if isinstance(arg, Tensor | Leaf | Value))
    call.pin(labels, call["dim"], f"'{call.operator}' looks channels up by a computed index")
    call.walk.freeze(index, f"it holds positions for '{call.operator}'{call.where}")
    for dim, size in enumerate(call.shape):
        labels = labels.narrow(dim, 0, 1 if dim == call["dim"] % labels.dim() else size)
    return labels.expand(call.shape)


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
      "replication_pad1d", "replication_pad2d", "replication_pad3d", "_pad_circular")  # fmt: skip
def pad(call: Call) -> Any:
    """Padding space is free; padded channels are units of their own if the module can adjust how many there are."""
    labels, amounts = call.walk.as_labels(call.args[0]), call.get("pad") or call["padding"]
    for dim in range(labels.dim()):
        before, after = _amount(amounts, labels.dim(), dim)
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


def _padding(call: Call, labels: Tensor, dim: int, attribute: str, amount: int) -> Tensor:
    """Return labels for padded channels: counted by the module that pads, or fixed."""
    shape = [amount if other == dim else size for other, size in enumerate(labels.shape)]
    if not isinstance(call.walk.modules.get(call.module), ChannelPad):
        return call.labels.fixed(shape, f"it is padded with a fixed number of channels{call.where}")
    new = call.labels.new(amount)
    call.walk.count(call.module, attribute, new)
    return along(new, dim, shape)


def _amount(amounts: list[int], ndim: int, dim: int) -> tuple[int, int]:
    at = 2 * (ndim - 1 - dim)
    return (amounts[at], amounts[at + 1]) if at < len(amounts) else (0, 0)
