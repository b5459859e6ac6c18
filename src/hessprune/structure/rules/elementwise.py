"""Element-wise operators: labels pass through, and labels that meet are tied."""

from typing import Any

import torch
from torch import Tensor

from hessprune.structure.labels import CONSTANT, constant
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call


@rule(
    "relu", "relu6", "leaky_relu", "rrelu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus",
    "sigmoid", "log_sigmoid", "logsigmoid", "tanh", "tanhshrink", "hardtanh", "hardswish", "hardsigmoid", "hardshrink",
    "softshrink", "softsign", "threshold", "abs", "neg", "sign", "exp", "expm1", "log", "log1p", "log2", "sqrt",
    "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "floor", "ceil", "round", "trunc", "frac", "isnan", "isinf",
    "logical_not", "bitwise_not", "nan_to_num", "add", "sub", "rsub", "mul", "div", "multiply", "true_divide",
    "floor_divide", "remainder", "fmod", "pow", "atan2", "maximum", "minimum", "clamp", "clamp_min", "clamp_max",
    "clip", "lerp", "addcmul", "addcdiv", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "bitwise_and", "bitwise_or", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    "native_dropout", "bernoulli", "clone", "contiguous", "alias", "detach", "detach_copy", "lift_fresh_copy",
    "lift_fresh", "to", "_to_copy", "type_as", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "fill", "zero", "copy",
)  # fmt: skip
def elementwise(call: Call) -> Tensor:
    """Broadcast all tensor arguments and tie what meets."""
    if call.operator == "prelu":
        return _prelu(call)
    return meet(call, call.tensors(), call.shape)


def meet(call: Call, tensors: list[Tensor], shape: torch.Size) -> Tensor:
    """Return the labels of a broadcast element-wise operation and tie the ones that meet."""
    out = constant([1] * len(shape))
    for labels in tensors:
        if labels.numel() and bool((labels != CONSTANT).any()):
            out = _pair(call, out, labels.reshape([1] * (len(shape) - labels.dim()) + list(labels.shape)))
    return out.expand(shape)


def _pair(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Tie two label tensors; one that is spread over an axis on which the other varies scales several units."""
    for dim in range(a.dim()):
        for spread, kept in ((a, b), (b, a)):
            if (
                spread.shape[dim] == 1 < kept.shape[dim]
                and _more_than_one(kept, dim)
                and bool((spread != CONSTANT).any())
            ):
                call.labels.freeze(spread, f"it is spread over several units{call.where}")
                return torch.broadcast_tensors(kept, spread)[0]
    a, b = torch.broadcast_tensors(a, b)
    call.labels.tie(a, b)
    return torch.where(a != CONSTANT, a, b)


def _more_than_one(labels: Tensor, dim: int) -> bool:
    """Whether a line along `dim` holds two different units (a constant beside a unit is not two)."""
    top = labels.amax(dim)
    low = torch.where(labels == CONSTANT, top.unsqueeze(dim), labels).amin(dim)
    return bool((low != top).any())


def _prelu(call: Call) -> Tensor:
    """The slope belongs to axis 1, whatever the number of dimensions."""
    x, weight = call.tensors()
    if weight.numel() > 1:
        call.labels.tie(call.walk.channels(x, 1), weight)
    return x


@rule("glu")
def glu(call: Call) -> Tensor:
    """`a · σ(b)` for the two halves of an axis: the same position goes in both."""
    halves = call.tensors()[0].chunk(2, call["dim"])
    call.labels.tie(*halves)
    return halves[0]


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn", "eye", "arange",
    "scalar_tensor",
)  # fmt: skip
def created(call: Call) -> Tensor:
    """A tensor made in the forward has the size its source code says; only a single number meets anything freely."""
    if call.shape.numel() <= 1:
        return constant(call.shape)
    return call.walk.fixed(call.shape, f"it meets a tensor of fixed size made{call.where}")


@rule(
    "sym_size",
    "_assert_tensor_metadata",
    "_assert_scalar",
    "item",
    "_local_scalar_dense",
    "sym_constrain_range_for_size",
)
def no_tensor(call: Call) -> Any:  # noqa: ARG001 - one signature for all rules
    """Bookkeeping of the capture: no labels."""
    return None
