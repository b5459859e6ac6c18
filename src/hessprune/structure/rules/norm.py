"""Normalisation: per channel it follows; over channels it couples their statistics."""

from typing import Any

from torch import Tensor, nn

from hessprune._modules import split_name
from hessprune.structure.call import Call
from hessprune.structure.labels import along
from hessprune.structure.leaves import Leaf
from hessprune.structure.rules.registry import rule


@rule("batch_norm", "instance_norm")
def per_channel_norm(call: Call) -> Tensor:
    """Scale, shift and running statistics follow their channel."""
    return _follow(call, "weight", "bias", "running_mean", "running_var")


@rule("group_norm")
def group_norm(call: Call) -> Tensor:
    """Channels normalised together go together: then the statistics of the other groups do not change."""
    out = _follow(call, "weight", "bias")
    groups = call.channels(out, 1).view(call["num_groups"], -1)
    if call["num_groups"] == 1:
        call.labels.freeze(groups, f"its channels are normalised together{call.where}")
    call.labels.tie(groups, groups[:, :1])
    module = split_name(call["weight"].name)[0] if isinstance(call.get("weight"), Leaf) else call.module
    if isinstance(call.walk.modules.get(module), nn.GroupNorm):
        call.walk.count(module, "num_groups", groups[:, 0])
    else:
        call.labels.freeze(groups, f"the number of groups in a group norm{call.where} is fixed in the source code")
    return out


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Any:
    """Removing a channel would change the mean and variance of all others, so slicing would not be masking."""
    labels = call.walk.as_labels(call["input"])
    for offset in range(1, len(call["normalized_shape"]) + 1):
        call.pin(labels, -offset, "its channels are normalised together")
    affine = [call.walk.as_labels(call[name]) for name in ("weight", "bias") if call.get(name) is not None]
    return call.meet([labels, *affine])


def _follow(call: Call, *names: str) -> Tensor:
    """Let vectors with one number per channel meet the input's axis 1."""
    vectors = [call.vector(name) for name in names]
    shape = [1] * len(call.shape)
    spread = [along(vector, 1, [*shape[:1], len(vector), *shape[2:]]) for vector in vectors if vector is not None]
    return call.meet([call.walk.as_labels(call["input"]), *spread])
