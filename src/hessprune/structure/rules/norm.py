"""Normalisation: per channel it follows; over channels it couples their statistics."""

from typing import Any

from torch import Tensor, nn

from hessprune._modules import split_name
from hessprune.structure.labels import varies
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call, Leaf, LiteralUse


@rule("batch_norm", "instance_norm")
def per_channel_norm(call: Call) -> Any:
    """Scale, shift and running statistics follow their channel."""
    _follow(call, call.walk.channels(call["input"], 1))
    return call.walk.as_labels(call["input"])


@rule("group_norm")
def group_norm(call: Call) -> Any:
    """Channels normalised together go together: then the statistics of the other groups do not change."""
    channels = call.walk.channels(call["input"], 1)
    groups = channels.view(call["num_groups"], -1)
    call.labels.tie(groups, groups[:, :1])
    _follow(call, channels)
    module = split_name(call["weight"].name)[0] if isinstance(call.get("weight"), Leaf) else call.module
    if isinstance(call.walk.modules.get(module), nn.GroupNorm):
        call.walk.literals.append(LiteralUse(module=module, attribute="num_groups", labels=groups[:, 0]))
    elif call["num_groups"] > 1:
        call.labels.freeze(channels, f"the number of groups in a group norm{call.where} is fixed in the source code")
    return call.walk.as_labels(call["input"])


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Any:
    """Removing a channel would change the mean and variance of all others, so slicing would not be masking."""
    labels = call.walk.as_labels(call["input"])
    for offset in range(1, len(call["normalized_shape"]) + 1):
        if varies(labels, -offset):
            call.labels.freeze(labels, f"its channels are normalised together{call.where}")
    for name in ("weight", "bias"):
        if isinstance(call.get(name), Leaf):
            call.labels.tie(labels, call.walk.as_labels(call[name]))
    return labels


def _follow(call: Call, channels: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call.get(name), Leaf):
            call.labels.tie(channels, call.walk.axis(call[name], 0, "follower"))
