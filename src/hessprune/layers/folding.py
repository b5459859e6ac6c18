"""Fold evaluation-mode BatchNorm into the layer in front of it.

`BN(W x + b) = (γ/σ) W x + β + (b − μ) γ/σ` with `σ² = running variance + ε`. The folded weight is `W' = (γ/σ) W`, so
a trace over `W` is the trace over `W'` times `(γ/σ)²`: folding changes what a forward costs, not what is reported.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model, logits_of, split_name
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
    """For each folded weight the factor `γ/σ` it was multiplied with, broadcastable to the weight's shape."""
    recording: Recording
    """What the run that found the pairs has seen."""


def fold_batchnorm(model: nn.Module, inputs: Any) -> Folded:
    """Return a copy of `model` whose BatchNorm layers are folded into the layers in front of them.

    The pairs are found by running the model once on `inputs`. A pair is folded where the BatchNorm is the only use of
    the layer's output and both are plain modules that the model calls once; all others stay as they are.

    Args:
        model: Any module; it is not changed.
        inputs: One small batch: a tensor, a tuple of arguments, or a dict of keyword arguments.

    Returns:
        The folded copy, the factors, and the recording of the run.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        >>> x = torch.randn(2, 3, 5, 5)
        >>> torch.allclose(fold_batchnorm(model, x).model(x), model(x), atol=1e-5)
        True
    """
    clone = copy.deepcopy(model).requires_grad_(False).eval()
    inputs = sample_rows(inputs, torch.tensor([0, -1]))
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
    if scale and not _agree(clone, model, inputs):  # a model that reaches its BatchNorm by another way than its modules
        return Folded(model=copy.deepcopy(model).requires_grad_(False).eval(), scale={}, recording=recording)
    return Folded(model=clone, scale=scale, recording=recording)


@torch.no_grad()
def _agree(folded: nn.Module, model: nn.Module, inputs: Any) -> bool:
    """Return whether both models compute the same logits."""
    with evaluation_mode(model):
        ours, theirs = (logits_of(call_model(m, inputs)).double() for m in (folded, model))
    rounding = 1e-2 if theirs.is_cuda else 1e-3  # TF32 keeps 10 bits of what a convolution reads
    tolerance = rounding * float(theirs.abs().max().clamp(min=1e-30))
    return bool(((ours - theirs).abs() <= tolerance).all()) or not bool(torch.isfinite(theirs).all())


def _is_plain(module: nn.Module) -> bool:
    """Return whether calling the module is calling its `forward`, with parameters of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return not any(hooks) and isinstance(module._parameters.get("weight"), nn.Parameter)


@torch.no_grad()
def _fold(model: nn.Module, layer: Any, norm_name: str, call: Convolution | Linear) -> Tensor:
    """Fold the BatchNorm called `norm_name` into `layer` and return the factor on the weight."""
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
