"""Reductions and whatever mixes values along an axis: fine over space, not over units."""

from typing import Any

from torch import Tensor

from hessprune.operators.call import Call
from hessprune.operators.table import rule


@rule(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "logsumexp", "prod", "any", "all",
    "argmax", "argmin", "linalg_vector_norm", "norm", "median",
)  # fmt: skip
def reduction(call: Call) -> Any:
    """Drop the reduced axes; units on a reduced axis would be summed together, so they stay."""
    labels = call.tensors()[0]
    if call.operator in {"max", "min"} and call.get("other") is not None:
        return call.refuse(f"operator '{call.operator}'{call.where} has no rule for two tensors")
    dims = _reduced(call, labels.dim())
    keepdim = bool(call.get("keepdim"))
    for dim in dims:
        call.pin(labels, dim, f"'{call.operator}' reduces over its channels")
        labels = labels.narrow(dim, 0, 1)
    for dim in [] if keepdim else dims:
        labels = labels.squeeze(dim)
    return [labels] * len(call.produced) if isinstance(call.produced, tuple | list) else labels


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin", "cumsum", "cumprod", "sort", "topk", "normalize")
def mixing(call: Call) -> Any:
    """The shape stays, but every value depends on all others along the axis."""
    labels = call.tensors()[0]
    call.pin(labels, call["dim"], f"'{call.operator}' mixes its channels")
    if isinstance(call.produced, tuple | list):
        return [labels.narrow(call["dim"], 0, value.shape[call["dim"]]) for value in call.produced]
    return labels


def _reduced(call: Call, ndim: int) -> list[int]:
    """Reduced axes, last first."""
    dims = call.get("dim")
    if dims is None or dims == []:
        return list(reversed(range(ndim)))
    dims = [dims] if isinstance(dims, int) else list(dims)
    return sorted((dim % ndim for dim in dims), reverse=True)


@rule("cdist", "cosine_similarity")
def distance(call: Call) -> Tensor:
    """Distances contract a whole axis."""
    return call.refuse(f"'{call.operator}' compares whole vectors{call.where}")
