"""Linear layers, embeddings and products with a parameter."""

from typing import Any

from torch import Tensor

from hessprune.operators.call import Call
from hessprune.operators.labels import along, varying
from hessprune.operators.leaves import Leaf
from hessprune.operators.maps import read_linear
from hessprune.operators.table import register


def linear(call: Call) -> Any:
    """Contract the last axis of the input with the weight's columns and emit its rows: `y = x Wᵀ + b`."""
    weight, x = call["weight"], call.walk.as_labels(call["input"])
    if not isinstance(weight, Leaf):
        return call.refuse(f"the linear layer's weight{call.where} is computed, not a parameter")
    x = call.per_head(x, -1)
    contract(call, call.channels(x, -1), weight, 1)
    return emit(call, x, rows_of(call, weight, 0), -1)


register("linear", labels=linear, linear_map=read_linear, derivative="product", integer="layer")


def contract(call: Call, channels: Tensor, weight: Leaf, dim: int) -> None:
    """Tie input labels `(C,)` to the axis of the weight that reads them; they stay where a buffer holds the weight."""
    columns = call.walk.axis(weight, dim, "consumer")
    call.labels.tie(channels, columns)
    if call.walk.is_buffer(weight):
        call.labels.freeze(columns, f"fixed weights read it, the buffer '{weight.name}'")


def rows_of(call: Call, weight: Leaf, dim: int) -> Tensor:
    """Return the labels of the axis of a weight that emits units; they stay where a buffer holds the weight.

    No gradient reaches a buffer and no refit may change one, so nothing could score or mend its units.
    """
    rows = call.walk.axis(weight, dim, "producer")
    if call.walk.is_buffer(weight):
        call.labels.freeze(rows, f"fixed weights emit it, the buffer '{weight.name}'")
    return rows


def emit(call: Call, x: Tensor, rows: Tensor, dim: int, bias_name: str = "bias") -> Tensor:
    """Put output labels along an axis and tie the bias to them.

    Units of the input that lie along other axes only pass through, and the output labels are frozen.
    """
    bias, unit_axes = call.vector(bias_name), varying(x)
    if bias is not None:
        call.labels.tie(rows, bias)
    shape = [*x.shape[: dim % x.dim()], len(rows), *x.shape[dim % x.dim() + 1 :]]
    if not unit_axes or dim % x.dim() in unit_axes:
        return along(rows, dim, shape)
    call.labels.freeze(rows, call.mixing)
    return x.narrow(dim, 0, 1).expand(shape)


def product_with_parameter(call: Call, x: Tensor, weight: Leaf, dim: int, *, inner: int) -> Tensor:
    """Contract axis `dim` of an activation with axis `inner` of a bare matrix of parameters."""
    x = call.per_head(x, dim)
    contract(call, call.channels(x, dim), weight, inner)
    return emit(call, x, rows_of(call, weight, 1 - inner), dim)


def grouped(call: Call) -> Any:
    """Follow one product for each expert: `(S, I)` rows, sorted by expert, with parameters `(E, I, O)`.

    A unit is the same neuron of every expert, since one tensor holds the weights of all.
    """
    x, weight = (call.args[number] for number in range(2))
    if not isinstance(weight, Leaf) or len(weight.shape) != 3 or isinstance(x, Leaf):
        return call.refuse(f"'{call.operator}'{call.where} mixes its channels")
    reason = f"its experts are looked up by number{call.where}"
    call.labels.freeze(call.walk.axis(weight, 0, "consumer"), reason)
    labels = call.walk.as_labels(x)
    contract(call, call.channels(labels, -1), weight, 1)
    return emit(call, labels, rows_of(call, weight, 2), -1)


register(
    "grouped_mm", "_grouped_mm", "transformers::grouped_mm_fallback", labels=grouped, derivative="product"
)  # fmt: skip


def embedding(call: Call) -> Any:
    """Emit the columns of the table; freeze its rows, which tokens look up by number."""
    weight = call["weight"]
    if not isinstance(weight, Leaf):
        return call.refuse(f"the embedding's table{call.where} is computed, not a parameter")
    call.labels.freeze(call.walk.axis(weight, 0, "consumer"), "its rows are looked up by number")
    return along(rows_of(call, weight, 1), len(call.shape) - 1, call.shape)


register("embedding", labels=embedding, derivative="piecewise-linear")
