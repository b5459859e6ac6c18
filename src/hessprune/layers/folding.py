"""Fold evaluation-mode BatchNorm into the layer in front of it.

`BN(W x + b) = (γ/σ) W x + β + (b − μ) γ/σ` with `σ² = running variance + ε`. The folded weight is `W' = (γ/σ) W`, and
the trace over `W` is the trace over `W'` times `(γ/σ)²`. A folded model runs faster and gives the same traces.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model, logits_of, split_name
from hessprune.foundation.sharded import is_sharded
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import sample_rows
from hessprune.layers.recording import Recording, record
from hessprune.operators.maps import Convolution, Linear

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A copy of a model with BatchNorm folded, in evaluation mode and without gradients."""

    model: nn.Module
    scale: dict[str, Tensor]
    """For each folded weight its factor `γ/σ`, broadcastable to the weight's shape."""
    recording: Recording
    """Recording of the run that found the pairs."""


def fold_batchnorm(model: nn.Module, inputs: Any) -> Folded:
    """Return a copy of `model` whose BatchNorm layers are folded into the layers in front of them.

    The model runs on `inputs` to find the pairs. A pair is folded if the BatchNorm is the only use of the layer's
    output, and both are plain modules that the model calls once. All other pairs stay as they are, and all
    pairs of a sharded model, which comes back itself.

    Args:
        model: Any module; it is not changed.
        inputs: One small batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        The folded copy, the factors, and the recording of the run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature import fold_batchnorm
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.allclose(fold_batchnorm(model, x).model(x), model(x), atol=1e-5)
        True
    """
    if is_sharded(model):  # it cannot be copied, and nobody holds a whole weight to fold into
        return Folded(model=model, scale={}, recording=record(model, inputs))
    clone = copy.deepcopy(model).requires_grad_(False).eval()
    recording = record(clone, inputs)
    norms = {id(m.running_mean): name for name, m in clone.named_modules() if type(m) in _NORMS}
    uses = {use.weight: use for use in recording.uses}
    scale: dict[str, Tensor] = {}
    for weight, mean in recording.foldable:
        layer_name, attribute = split_name(weight)
        layer, flat = clone.get_submodule(layer_name), len(uses[weight].output_shape) == 2
        if type(layer) not in _LAYERS or attribute != "weight" or mean not in norms or not _is_plain(layer):
            continue
        if flat or isinstance(uses[weight].call, Convolution):
            scale[weight] = _fold(clone, layer, norms[mean], uses[weight].call)
    two = sample_rows(inputs, torch.tensor([0, -1], device="cpu"))
    if scale and not _agree(clone, model, two):  # the model reads its BatchNorm other than by calling it
        return Folded(model=copy.deepcopy(model).requires_grad_(False).eval(), scale={}, recording=recording)
    return Folded(model=clone, scale=scale, recording=recording)


@torch.no_grad()
def _agree(folded: nn.Module, model: nn.Module, inputs: Any) -> bool:
    """Return True if both models compute the same logits."""
    with evaluation_mode(model):
        ours, theirs = (logits_of(call_model(m, inputs)).double() for m in (folded, model))
    rounding = 1e-2 if theirs.is_cuda else 1e-3  # TF32 rounds the inputs of a convolution to 10 bits
    tolerance = rounding * float(theirs.abs().max().clamp(min=1e-30))
    return bool(((ours - theirs).abs() <= tolerance).all()) or not bool(torch.isfinite(theirs).all())


def _is_plain(module: nn.Module) -> bool:
    """Return True if a module has no hooks, and holds its weight as a parameter."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return not any(hooks) and isinstance(module._parameters.get("weight"), nn.Parameter)


@torch.no_grad()
def _fold(model: nn.Module, layer: Any, norm_name: str, call: Convolution | Linear) -> Tensor:
    """Fold the BatchNorm `norm_name` into `layer`, and return the factor on the weight."""
    norm: Any = model.get_submodule(norm_name)
    weight, bias = layer.weight, layer.bias
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias
    factor = factor.to(weight.dtype)
    spread = call.output_scale(factor, weight)
    layer.weight = nn.Parameter(weight * spread, requires_grad=False)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
    parent, attribute = split_name(norm_name)
    setattr(model.get_submodule(parent), attribute, nn.Identity())
    return spread
