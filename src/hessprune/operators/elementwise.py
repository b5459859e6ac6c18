"""Element-wise operators: labels pass through, and labels that meet are tied."""

from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from hessprune.operators.call import Call
from hessprune.operators.leaves import Leaf
from hessprune.operators.table import rule


@rule(
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus",
    "sigmoid", "log_sigmoid", "logsigmoid", "tanh", "tanhshrink", "hardtanh", "hardswish", "hardsigmoid", "hardshrink",
    "softshrink", "softsign", "threshold", "abs", "neg", "sign", "exp", "expm1", "log", "log1p", "log2", "sqrt",
    "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "floor", "ceil", "round", "trunc", "frac", "isnan", "isinf",
    "logical_not", "bitwise_not", "nan_to_num", "add", "sub", "rsub", "mul", "div", "multiply", "true_divide",
    "floor_divide", "remainder", "fmod", "pow", "atan2", "maximum", "minimum", "clamp", "clamp_min", "clamp_max",
    "clip", "lerp", "addcmul", "addcdiv", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "bitwise_and", "bitwise_or", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
    "bernoulli", "clone", "contiguous", "alias", "detach", "detach_copy", "lift_fresh_copy",
    "lift_fresh", "to", "_to_copy", "type_as", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "fill", "zero", "copy",
)  # fmt: skip
def elementwise(call: Call) -> Any:
    """Broadcast all tensor arguments and tie what meets; a scaled parameter is still that parameter."""
    parameter = _scaled_parameter(call)
    return parameter or call.meet(call.tensors()).expand(call.shape)


# f(0) = 0: the zeroed slices of a parameter stay zero, so what is computed stands for the parameter itself.
_ZERO_STAYS = {
    "mul", "div", "neg", "abs", "relu", "tanh", "sign", "dropout", "clone", "contiguous", "alias", "detach",
    "detach_copy", "lift_fresh_copy", "lift_fresh", "to", "_to_copy", "type_as",
}  # fmt: skip


def _scaled_parameter(call: Call) -> Leaf | None:
    """Return the one operand that is more than a number, if it is a parameter and keeps its zeros."""
    large = [operand for operand in call.operands() if not isinstance(operand, Leaf) or operand.shape.numel() > 1]
    found = large[0] if len(large) == 1 and call.operator in _ZERO_STAYS else None
    is_divisor = call.operator == "div" and found is not call.args[0]
    return found if isinstance(found, Leaf) and found.shape == call.shape and not is_divisor else None


@rule("prelu")
def prelu(call: Call) -> Tensor:
    """The slope belongs to axis 1, whatever the number of dimensions."""
    x, slope = call.tensors()
    slopes = slope.reshape([-1 if dim == min(1, x.dim() - 1) else 1 for dim in range(x.dim())])
    return call.meet([x, slopes]).expand(call.shape)


@rule("glu")
def glu(call: Call) -> Tensor:
    """`a · σ(b)` for the two halves of an axis: the same position goes in both."""
    halves = call.tensors()[0].chunk(2, call["dim"])
    call.labels.tie(*halves)
    return halves[0]


@rule(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "rand", "randn", "eye",
    "arange", "scalar_tensor", "linspace", "tril_indices", "triu_indices",
)  # fmt: skip
def created(call: Call) -> Tensor:
    """A tensor made in the forward has the size its source code says; only a single number meets anything freely."""
    return call.labels.fixed(call.shape, f"it meets a tensor of fixed size made{call.where}")


@rule("sym_size", "_assert_tensor_metadata", "_assert_scalar", "item", "_local_scalar_dense",
      "sym_constrain_range_for_size")  # fmt: skip
def no_tensor(call: Call) -> Any:  # noqa: ARG001 - one signature for all rules
    """Bookkeeping of the capture: no labels."""
    return None


@rule("wrap_with_set_grad_enabled", "wrap_with_autocast")
def region(call: Call) -> Any:
    """A part of the graph under another mode: run what is inside."""
    position = next(number for number, arg in enumerate(call.args) if isinstance(arg, GraphModule))
    return call.walk.run(call.args[position], call.args[position + 1 :])
