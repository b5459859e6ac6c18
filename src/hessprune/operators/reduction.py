"""Reductions, and operators that mix values along an axis: units along that axis stay."""

from typing import Any

from torch import Tensor

from hessprune.operators.call import Call
from hessprune.operators.labels import constant
from hessprune.operators.table import register


def reduction(call: Call) -> Any:
    """Drop the reduced axes; pin them, since units along them would be summed together."""
    labels = call.tensors()[0]
    if call.operator in {"max", "min"} and call.get("other") is not None:
        return call.refuse(f"operator '{call.operator}'{call.where} has no rule for two tensors")
    dims = _reduced(call, labels.dim())
    keepdim = bool(call.get("keepdim"))
    if len(dims) == 1 and keepdim and call.operator in _STATISTICS and call.normalise(labels, dims[0]):
        shape = labels.narrow(dims[0], 0, 1).shape
        return [constant(shape) for _ in call.produced] if isinstance(call.produced, tuple | list) else constant(shape)
    for dim in dims:
        call.pin(labels, dim, f"'{call.operator}' reduces over its channels")
        labels = labels.narrow(dim, 0, 1)
    for dim in [] if keepdim else dims:
        labels = labels.squeeze(dim)
    return [labels] * len(call.produced) if isinstance(call.produced, tuple | list) else labels


_STATISTICS = {"mean", "var", "std", "var_mean"}
"""The operators by which norms that people write themselves reduce their channels."""

register(
    "mean", "sum", "amax", "amin", "max", "min", "any", "all", "argmax", "argmin", "median",
    labels=reduction, derivative="piecewise-linear",
)  # fmt: skip
register("var", "std", "var_mean", "logsumexp", "prod", "linalg_vector_norm", "norm", labels=reduction)


def mixing(call: Call) -> Any:
    """Pin the axis along which every value depends on all others."""
    labels = call.tensors()[0]
    call.pin(labels, call["dim"], f"'{call.operator}' mixes its channels")
    if isinstance(call.produced, tuple | list):
        return [labels.narrow(call["dim"], 0, value.shape[call["dim"]]) for value in call.produced]
    return labels


register("cumsum", "cummax", "cummin", "sort", "argsort", "topk", labels=mixing, derivative="piecewise-linear")
register(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "softmin", "cumprod", "logcumsumexp", "normalize",
    labels=mixing,
)  # fmt: skip


def _reduced(call: Call, ndim: int) -> list[int]:
    """Return the reduced axes, the last one first."""
    dims = call.get("dim")
    if dims is None or dims == []:
        return list(reversed(range(ndim)))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted((dim % ndim for dim in dims), reverse=True)


def distance(call: Call) -> Tensor:
    """Refuse distances, which contract a whole axis."""
    return call.refuse(f"'{call.operator}' compares whole vectors{call.where}")


register("cdist", "cosine_similarity", labels=distance)
register("trace", derivative="piecewise-linear")
