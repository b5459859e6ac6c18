"""Normalisation: statistics of one channel follow it; statistics of several channels couple them."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hessprune.foundation.modules import split_name
from hessprune.operators.call import Call
from hessprune.operators.labels import along
from hessprune.operators.leaves import Leaf, LiteralUse
from hessprune.operators.table import register


def per_channel_norm(call: Call) -> Tensor:
    """Tie scale, shift and running statistics to their channel; a norm without any has its width in an attribute."""
    out = _follow(call, "weight", "bias", "running_mean", "running_var")
    module = call.walk.modules.get(call.module)
    if not isinstance(module, _NormBase) or module.weight is not None or module.running_mean is not None:
        return out
    if module.num_features == out.shape[1]:
        call.walk.note_width(LiteralUse(module=call.module, attribute="num_features", labels=call.channels(out, 1)))
    return out


register("batch_norm", labels=per_channel_norm, derivative="piecewise-linear")  # in evaluation mode
register("instance_norm", labels=per_channel_norm)


def group_norm(call: Call) -> Tensor:
    """Tie the channels of a group: then a removal leaves the statistics of all other groups as they are."""
    out = _follow(call, "weight", "bias")
    groups = call.channels(out, 1).view(call["num_groups"], -1)
    if call["num_groups"] == 1:
        call.labels.freeze(groups, f"its channels are normalised together{call.where}")
    call.labels.tie(groups, groups[:, :1])
    if (module := _counting_module(call)) is not None:
        call.walk.count(module, "num_groups", groups[:, 0])
    else:
        call.labels.freeze(groups, f"the number of groups in a group norm{call.where} is fixed in the source code")
    return out


def _counting_module(call: Call) -> str | None:
    """Return the norm whose `num_groups` this call reads: the calling module, or the one that holds the weight."""
    weight = call.get("weight")
    for name in (call.module, split_name(weight.name)[0] if isinstance(weight, Leaf) else ""):
        if isinstance(call.walk.modules.get(name), nn.GroupNorm):
            return name
    return None


register("group_norm", labels=group_norm)


def layer_norm(call: Call) -> Any:
    """Pin the normalised axes, unless asked not to: removing a channel changes the mean and variance of all others."""
    labels, num_axes = call.walk.as_labels(call["input"]), len(call["normalized_shape"])
    is_free = num_axes == 1 and call.normalise(labels, -1)
    for offset in () if is_free else range(1, num_axes + 1):
        call.pin(labels, -offset, "its channels are normalised together")
    affine = [call.walk.as_labels(call[name]) for name in ("weight", "bias") if call.get(name) is not None]
    return call.meet([labels, *affine]).expand(call.shape)


register("layer_norm", "rms_norm", labels=layer_norm)


def _follow(call: Call, *names: str) -> Tensor:
    """Tie vectors with one number per channel to axis 1 of the input."""
    x = call.walk.as_labels(call["input"])
    vectors = [vector for vector in map(call.vector, names) if vector is not None]
    for vector in vectors[1:]:
        call.labels.tie(vectors[0], vector)
    met = call.meet([x, *(along(vector, 1, [1, -1] + [1] * (x.dim() - 2)) for vector in vectors[:1])])
    return met.expand(call.shape)
