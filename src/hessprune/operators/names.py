"""One name for all spellings of an operator: ATen overloads, torch functions, methods, in-place forms, `+` and `@`."""

from functools import cache
from typing import Any

from torch._ops import OpOverload

SPELLINGS = {
    "__radd__": "add",
    "__iadd__": "add",
    "__isub__": "sub",
    "__rmul__": "mul",
    "__imul__": "mul",
    "multiply": "mul",
    "__truediv__": "div",
    "__itruediv__": "div",
    "__idiv__": "div",
    "divide": "div",
    "true_divide": "div",
    "__rtruediv__": "rdiv",  # a quotient with the arguments in the other order, as `rsub` is a difference
    "__floordiv__": "floor_divide",
    "__mod__": "remainder",
    "__and__": "bitwise_and",
    "__rand__": "bitwise_and",
    "__or__": "bitwise_or",
    "__ror__": "bitwise_or",
    "__invert__": "bitwise_not",
    "__len__": "size",
    "__bool__": "is_nonzero",
    "__float__": "item",
    "__int__": "item",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "_max_pool1d": "max_pool1d",
    "_max_pool2d": "max_pool2d",
    "_max_pool3d": "max_pool3d",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "fix": "trunc",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arccos": "acos",
    "arccosh": "acosh",
    "arctan": "atan",
    "arctanh": "atanh",
    "arctan2": "atan2",
    "special_digamma": "digamma",
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_erfinv": "erfinv",
    "special_exp2": "exp2",
    "special_expm1": "expm1",
    "special_i0": "i0",
    "special_log1p": "log1p",
    "special_log_softmax": "log_softmax",
    "special_logit": "logit",
    "special_logsumexp": "logsumexp",
    "special_polygamma": "polygamma",
    "special_round": "round",
    "special_sinc": "sinc",
    "special_softmax": "softmax",
    "special_xlogy": "xlogy",
    "special_expit": "sigmoid",
    "special_psi": "digamma",
    "special_gammaln": "lgamma",
    "special_gammainc": "igamma",
    "special_gammaincc": "igammac",
    "special_multigammaln": "mvlgamma",
}
"""Other spellings of a name; underscores around or behind a name need no entry."""

ATTRIBUTES = {"T": "numpy_T", "mT": "mT", "H": "numpy_T", "mH": "mT", "data": "detach", "real": "real", "imag": "imag"}
"""Attributes of a tensor that compute another tensor, and the operator that does the same to real numbers."""


def operator_name(target: Any) -> str:
    """Return the name of an operator, the same for all of its spellings.

    Args:
        target: The target of a graph's node or the function that a function mode receives.

    Returns:
        The ATen name without overload and without the underscore of in-place forms. Operators of other namespaces keep
        their full name. `"get"` stands for reading an attribute that computes nothing.

    Example:
        >>> import torch
        >>> aten = torch.ops.aten
        >>> operator_name(aten.relu_.default), operator_name(aten.conv2d.padding)
        ('relu', 'conv2d')
        >>> operator_name(torch.Tensor.__radd__), operator_name(torch.Tensor.mT.__get__)
        ('add', 'mT')
    """
    name = _spelling(target)
    if name == "__get__":
        return ATTRIBUTES.get(getattr(target.__self__, "__name__", ""), "get")
    return _plain(name)


def is_in_place(target: Any) -> bool:
    """Return whether an operator overwrites its first argument, by the spelling of its name."""
    name = _spelling(target)
    return name == "__setitem__" or (name.endswith("_") and not name.startswith("__"))


def _spelling(target: Any) -> str:
    """Return the name as it is written, without the namespace of ATen."""
    if isinstance(target, OpOverload):
        return _schema_name(target)
    return getattr(target, "__name__", None) or str(target)


@cache
def _schema_name(overload: OpOverload) -> str:
    """Return the name in the schema of an overload; torch makes a new string at each reading, which is slow."""
    return overload._schema.name.removeprefix("aten::")


@cache
def _plain(name: str) -> str:
    """Return the name without its spelling; names of other namespaces as they are."""
    if "::" in name:
        return name
    if name.startswith("__") and name not in SPELLINGS:
        return name.strip("_")
    return SPELLINGS.get(name) or SPELLINGS.get(name.rstrip("_")) or name.rstrip("_")
