"""Convolutions, and operators that treat each channel of an image by itself: pooling and resampling."""

from typing import Any

from torch import Tensor, nn

from hessprune.foundation.modules import split_name
from hessprune.operators.call import Call
from hessprune.operators.leaves import Leaf
from hessprune.operators.linear import contract, emit, rows_of
from hessprune.operators.maps import read_convolution, read_transposed_convolution
from hessprune.operators.table import register


def convolution(call: Call) -> Any:
    """Contract the input's channels with the weight's input axis; emit the weight's output axis."""
    weight = call["weight"]
    if not isinstance(weight, Leaf):
        return call.refuse(f"the convolution's weight{call.where} is computed, not a parameter")
    transposed, groups = call.operator.startswith("conv_transpose"), call["groups"]
    rank = len(weight.shape) - 2
    x = over_space(call, call.walk.as_labels(call["input"]), rank)
    channels = call.channels(x, -1 - rank)
    if groups == 1:
        contract(call, channels, weight, 0 if transposed else 1)
        out = rows_of(call, weight, 1 if transposed else 0)
    elif _whole_groups(call, weight, groups, len(channels)):
        out = _by_group(call, channels, weight, transposed)
    else:
        out = _by_position(call, channels, weight, transposed)
    return emit(call, x, out, -1 - rank).expand(call.shape)


register(
    "conv1d", "conv2d", "conv3d",
    labels=convolution, linear_map=read_convolution, derivative="product", integer="layer",
    overloads=("default",),  # the other overload names its padding, which no kernel understands
)  # fmt: skip
register(
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    labels=convolution, linear_map=read_transposed_convolution, derivative="product", integer="transposed layer",
)  # fmt: skip


def over_space(call: Call, labels: Tensor, rank: int) -> Tensor:
    """Reduce the last `rank` axes to size 1: a kernel slides over them, so units along them stay."""
    for dim in range(-rank, 0):
        call.pin(labels, dim, f"'{call.operator}' slides over its channels")
        labels = labels.narrow(dim, 0, 1)
    return labels


def _whole_groups(call: Call, weight: Leaf, groups: int, channels: int) -> bool:
    """Return whether a unit is a whole group: the finer choice among many groups, if a module holds their number."""
    return groups * groups >= channels and (_counting_module(call, weight) is not None or channels == groups)


def _counting_module(call: Call, weight: Leaf) -> str | None:
    """Return the convolution whose `groups` this call reads: the calling module, or the one that holds the weight."""
    for name in (call.module, split_name(weight.name)[0]):
        if isinstance(call.walk.modules.get(name), nn.modules.conv._ConvNd):
            return name
    return None


def _by_group(call: Call, x: Tensor, weight: Leaf, transposed: bool) -> Tensor:
    """Tie the inputs and outputs of each group of the convolution: `groups` falls by one with every unit.

    A buffer of filters, as one that blurs, follows its inputs.
    """
    groups = call["groups"]
    rows = call.walk.axis(weight, 0, "producer").view(groups, -1)
    call.labels.tie(rows, rows[:, :1])
    call.labels.tie(x.view(groups, -1), rows[:, :1])
    call.labels.freeze(call.walk.axis(weight, 1, "consumer"), "it lies within a group of a grouped convolution")
    if (module := _counting_module(call, weight)) is not None:
        call.walk.count(module, "groups", rows[:, 0])
    width = weight.shape[1] if transposed else rows.shape[1]
    return rows[:, :1].expand(groups, width).reshape(-1)


def _by_position(call: Call, x: Tensor, weight: Leaf, transposed: bool) -> Tensor:
    """Tie the same position of all groups, in the input and in the output: `groups` stays."""
    groups = call["groups"]
    x = x.view(groups, -1)
    call.labels.tie(x, x[:1])
    if transposed:
        contract(call, x.reshape(-1), weight, 0)
        return rows_of(call, weight, 1).repeat(groups)
    contract(call, x[0], weight, 1)
    rows = rows_of(call, weight, 0).view(groups, -1)
    call.labels.tie(rows, rows[:1])
    return rows.reshape(-1)


def per_channel(call: Call) -> Any:
    """Pool or resample each channel by itself."""
    rank = int(next(char for char in call.operator if char.isdigit()))
    out = call.meet([over_space(call, labels, rank) for labels in call.tensors()]).expand(call.shape)
    return [out, out] if isinstance(call.produced, tuple | list) else out


register(
    "max_pool1d", "max_pool3d", "avg_pool1d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_unpool2d", "max_unpool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    labels=per_channel, derivative="piecewise-linear",
)  # fmt: skip
register("max_pool2d", labels=per_channel, derivative="piecewise-linear", integer="move")
register("avg_pool2d", labels=per_channel, derivative="piecewise-linear", integer="pool")
register("lp_pool2d", labels=per_channel)
register("interpolate", "upsample", derivative="piecewise-linear")


def sample(call: Call) -> Tensor:
    """Sample each channel by itself; freeze the coordinates, which all channels share."""
    grid = call.walk.as_labels(call["grid"])
    call.walk.freeze(grid, f"it holds coordinates for '{call.operator}'{call.where}")
    x = call.walk.as_labels(call["input"])
    return over_space(call, x, x.dim() - 2).expand(call.shape)


register("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", labels=sample)


def unfold(call: Call) -> Tensor:
    """Follow `(N, C, H, W) → (N, C·k², L)`: the patches of a channel lie side by side."""
    labels = over_space(call, call.walk.as_labels(call.args[0]), 2)[..., 0]
    return labels.repeat_interleave(call.shape[-2] // labels.shape[-2], -2).expand(call.shape)


register("im2col", labels=unfold, derivative="piecewise-linear")


def fold(call: Call) -> Tensor:
    """Follow `(N, C·k², L) → (N, C, H, W)`: tie the columns of each channel."""
    labels = over_space(call, call.walk.as_labels(call.args[0]), 1)
    grid = labels.unflatten(-2, (call.shape[-3], -1))
    call.labels.tie_along(grid, -2)
    return grid[..., :1, :].expand(call.shape)


register("col2im", labels=fold, derivative="piecewise-linear")
register("fold", derivative="piecewise-linear")
