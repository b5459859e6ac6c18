"""Element-wise operators: labels pass through, and labels that meet are tied."""

from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from hessprune.operators.call import Call
from hessprune.operators.labels import along
from hessprune.operators.leaves import Leaf
from hessprune.operators.table import register


def elementwise(call: Call) -> Any:
    """Broadcast all tensor arguments and tie the labels that meet; a scaled parameter is still that parameter."""
    parameter = _scaled_parameter(call)
    if parameter is not None:
        return parameter
    tensors = call.tensors()[:1] if call.operator == "type_as" else call.tensors()  # the other gives its type alone
    return call.meet(tensors).expand(call.shape)


# f(0) = 0: the zeroed slices of a parameter stay zero, so the result stands for the parameter itself.
_ZERO_STAYS = {
    "mul", "div", "neg", "abs", "relu", "tanh", "sign", "dropout", "clone", "contiguous", "alias", "detach",
    "detach_copy", "lift_fresh_copy", "lift_fresh", "to", "_to_copy", "type_as",
}  # fmt: skip


def _scaled_parameter(call: Call) -> Leaf | None:
    """Return the one operand that is more than a number, if it is a parameter and keeps its zeros."""
    large = [operand for operand in call.operands() if not isinstance(operand, Leaf) or operand.shape.numel() > 1]
    operand = large[0] if len(large) == 1 and call.operator in _ZERO_STAYS else None
    is_divisor = call.operator == "div" and operand is not call.args[0]
    return operand if isinstance(operand, Leaf) and operand.shape == call.shape and not is_divisor else None


def where(call: Call) -> Any:
    """Choose between two tensors; with a condition alone, return the places where it holds."""
    return elementwise(call) if len(call.args) > 1 else call.refuse("places are chosen by numbers")


register("relu", "relu6", "hardtanh", labels=elementwise, derivative="piecewise-linear", integer="activation")
register("add", labels=elementwise, derivative="piecewise-linear", integer="sum", overloads=("Tensor",))
register("mul", labels=elementwise, derivative="product", integer="product", overloads=("Tensor",))
register("div", labels=elementwise, derivative="quotient")
register("sigmoid", labels=elementwise, integer="lookup")
register("dropout", "feature_dropout", "alias", labels=elementwise, derivative="piecewise-linear", integer="same")
register("where", labels=where, derivative="piecewise-linear")
register("dropout1d", "dropout2d", "dropout3d", derivative="piecewise-linear", integer="same")
register("clone", "contiguous", labels=elementwise, derivative="piecewise-linear", integer="move")
register(
    "leaky_relu", "rrelu", "hardsigmoid", "hardshrink", "softshrink", "threshold", "abs", "neg", "sub", "rsub",
    "maximum", "minimum", "clamp", "clamp_min", "clamp_max", "masked_fill", "nan_to_num",
    "complex", "real", "imag", "conj", "_conj", "conj_physical", "resolve_conj",
    "fmax", "fmin", "copysign", "nextafter", "positive", "deg2rad", "rad2deg",
    "sign", "sgn", "signbit", "floor", "ceil", "round", "trunc", "frac", "isnan", "isinf", "isfinite", "isneginf",
    "isposinf", "isclose", "eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or",
    "logical_xor", "bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift",
    "bitwise_right_shift", "gcd", "lcm",
    "alpha_dropout", "feature_alpha_dropout", "detach", "detach_copy", "lift_fresh_copy", "lift_fresh",
    "to", "_to_copy", "type_as", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "fill", "zero", "copy",
    labels=elementwise, derivative="piecewise-linear",
)  # fmt: skip
register(
    "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "log_sigmoid", "logsigmoid", "tanh", "tanhshrink",
    "hardswish", "softsign", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "reciprocal", "sin",
    "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "sinc", "hypot", "exp2",
    "polar", "angle",
    "log10", "logit", "logaddexp", "logaddexp2", "xlogy", "special_xlog1py", "special_entr", "erf", "erfc", "erfinv",
    "special_erfcx", "special_ndtr", "special_ndtri", "special_log_ndtr", "lgamma", "mvlgamma", "digamma", "polygamma",
    "igamma", "igammac", "special_zeta", "i0", "special_i0e", "special_i1", "special_i1e", "floor_divide", "remainder",
    "fmod", "pow", "float_power", "ldexp", "heaviside", "lerp", "addcmul", "addcdiv", "bernoulli",
    labels=elementwise,
)  # fmt: skip
register(
    "float", "double", "half", "bfloat16", "type", "requires_grad", "setitem", "tril", "triu",
    derivative="piecewise-linear",
)  # fmt: skip
register(
    "get", "size", "dim", "numel", "stride", "element_size", "is_contiguous", "is_floating_point", "is_nonzero",
    derivative="look",
)  # fmt: skip


def prelu(call: Call) -> Tensor:
    """Tie the slopes to axis 1, for any number of dimensions."""
    x, slope = call.tensors()
    slopes = slope.reshape([-1 if dim == min(1, x.dim() - 1) else 1 for dim in range(x.dim())])
    return call.meet([x, slopes]).expand(call.shape)


register("prelu", labels=prelu, derivative="piecewise-linear")


def glu(call: Call) -> Tensor:
    """Tie the same position in both halves of an axis: `a · σ(b)`."""
    halves = call.tensors()[0].chunk(2, call["dim"])
    call.labels.tie(*halves)
    return halves[0]


register("glu", labels=glu)


def created(call: Call) -> Tensor:
    """Return fixed labels: the source code says the size of a tensor made in the forward."""
    return call.labels.fixed(call.shape, f"it meets a tensor of fixed size{call.where}")


register(
    "rand", "randn", "eye", "arange", "scalar_tensor", "linspace", "tril_indices", "triu_indices",
    labels=created, derivative="piecewise-linear",
)  # fmt: skip


def filled(call: Call) -> Tensor:
    """Return labels along the axis of channels or heads for equal numbers, as of a state or a sum that starts at zero.

    Whether that size follows the units shows on trial; all other axes are fixed.
    """
    if len(call.shape) < 2 or call.shape[1] == 1 or not call.produced.is_floating_point():
        return created(call)
    return along(call.labels.new(call.shape[1]), 1, call.shape)


register(
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty",
    labels=filled, derivative="piecewise-linear",
)  # fmt: skip


def no_tensor(call: Call) -> Any:  # noqa: ARG001 - one signature for all rules
    """Return no labels for the bookkeeping of the capture."""
    return None


register(
    "sym_size", "_assert_tensor_metadata", "_assert_scalar", "item", "_local_scalar_dense",
    "sym_constrain_range_for_size",
    labels=no_tensor,
)  # fmt: skip


def region(call: Call) -> Any:
    """Run a part of the graph that computes under another mode."""
    position = next(number for number, arg in enumerate(call.args) if isinstance(arg, GraphModule))
    return call.walk.run(call.args[position], call.args[position + 1 :])


register("wrap_with_set_grad_enabled", "wrap_with_autocast", labels=region)
