"""Convolutions and what works per channel on a grid: pooling and resampling."""

from typing import Any

from torch import Tensor, nn

from hessprune._modules import split_name
from hessprune.structure.labels import CONSTANT, along
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call, Leaf, LiteralUse


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(call: Call) -> Any:
    """Contract the input's channels with the weight's input axis; emit the weight's output axis."""
    weight = call["weight"]
    if not isinstance(weight, Leaf):
        return call.refuse(f"the convolution's weight{call.where} is computed, not a parameter")
    transposed, groups = call.operator.startswith("conv_transpose"), call["groups"]
    channel_dim = 1 - len(weight.shape)  # counted from the end, so that unbatched inputs work too
    x = call.walk.channels(call["input"], channel_dim)
    if groups == 1:
        out = _dense(call, x, weight, transposed)
    elif _whole_groups(call, weight, groups, len(x)):
        out = _by_group(call, x, weight, transposed)
    else:
        out = _by_position(call, x, weight, transposed)
    if isinstance(call.get("bias"), Leaf):
        call.labels.tie(out, call.walk.axis(call["bias"], 0, "follower"))
    return along(out, len(call.shape) + channel_dim, call.shape)


def contract(call: Call, x: Tensor, weight: Leaf, dim: int) -> None:
    """Tie input labels with the weight axis that reads them; what reads a constant keeps its place."""
    axis = call.walk.axis(weight, dim, "consumer")
    call.labels.tie(x, axis)
    if bool((x == CONSTANT).any()):
        call.labels.freeze(axis[x == CONSTANT], f"it reads a constant{call.where}")


def _dense(call: Call, x: Tensor, weight: Leaf, transposed: bool) -> Tensor:
    contract(call, x, weight, 0 if transposed else 1)
    return call.walk.axis(weight, 1 if transposed else 0, "producer")


def _whole_groups(call: Call, weight: Leaf, groups: int, channels: int) -> bool:
    """Whether the unit is a whole group (the finer choice when groups are many), whose number a module must hold."""
    owner = call.walk.modules.get(split_name(weight.name)[0])
    has_attribute = isinstance(owner, nn.modules.conv._ConvNd)
    return groups * groups >= channels and (has_attribute or channels == groups)


def _by_group(call: Call, x: Tensor, weight: Leaf, transposed: bool) -> Tensor:
    """A group of the convolution goes as a whole: its inputs, its outputs, and one of `groups`."""
    groups = call["groups"]
    rows = call.walk.axis(weight, 0, "producer").view(groups, -1)
    call.labels.tie(rows, rows[:, :1])
    call.labels.tie(x.view(groups, -1), rows[:, :1])
    call.labels.freeze(call.walk.axis(weight, 1, "consumer"), "it lies within a group of a grouped convolution")
    module, _ = split_name(weight.name)
    if isinstance(call.walk.modules.get(module), nn.modules.conv._ConvNd):
        call.walk.literals.append(LiteralUse(module=module, attribute="groups", labels=rows[:, 0]))
    width = weight.shape[1] if transposed else rows.shape[1]
    return rows[:, :1].expand(groups, width).reshape(-1)


def _by_position(call: Call, x: Tensor, weight: Leaf, transposed: bool) -> Tensor:
    """The same position goes in every group, on either side, so that `groups` stays."""
    groups = call["groups"]
    x = x.view(groups, -1)
    call.labels.tie(x, x[:1])
    if transposed:
        call.labels.tie(call.walk.axis(weight, 0, "consumer").view(groups, -1), x)
        return call.walk.axis(weight, 1, "producer").repeat(groups)
    contract(call, x[0], weight, 1)
    rows = call.walk.axis(weight, 0, "producer").view(groups, -1)
    call.labels.tie(rows, rows[:1])
    return rows.reshape(-1)


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool2d_with_indices", "lp_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
    "grid_sampler", "grid_sampler_2d",
)  # fmt: skip
def per_channel(call: Call) -> Any:
    """Each channel is pooled or resampled by itself."""
    digits = [char for char in call.operator if char.isdigit()]
    channel_dim = -1 - int(digits[-1]) if digits else -3
    out = along(call.walk.channels(call.tensors()[0], channel_dim), len(call.shape) + channel_dim, call.shape)
    return [out, out] if isinstance(call.node.meta["val"], tuple | list) else out
