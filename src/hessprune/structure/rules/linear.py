"""Linear layers, embeddings and products with a parameter."""

from typing import Any

from hessprune.structure.labels import along
from hessprune.structure.rules.convolution import contract
from hessprune.structure.rules.registry import rule
from hessprune.structure.walk import Call, Leaf


@rule("linear")
def linear(call: Call) -> Any:
    """`y = x Wᵀ + b`: contract the last axis with the weight's columns, emit its rows."""
    weight = call["weight"]
    if not isinstance(weight, Leaf):
        return call.refuse(f"the linear layer's weight{call.where} is computed, not a parameter")
    contract(call, call.walk.channels(call["input"], -1), weight, 1)
    rows = call.walk.axis(weight, 0, "producer")
    if isinstance(call.get("bias"), Leaf):
        call.labels.tie(rows, call.walk.axis(call["bias"], 0, "follower"))
    return along(rows, len(call.shape) - 1, call.shape)


def product_with_parameter(call: Call, x: Any, weight: Leaf) -> Any:
    """`y = x W` with a bare parameter `(I, O)`."""
    contract(call, call.walk.channels(x, -1), weight, 0)
    return along(call.walk.axis(weight, 1, "producer"), len(call.shape) - 1, call.shape)


@rule("embedding")
def embedding(call: Call) -> Any:
    """Emit the columns of the table; its rows are looked up by number and stay."""
    weight = call["weight"]
    if not isinstance(weight, Leaf):
        return call.refuse(f"the embedding's table{call.where} is computed, not a parameter")
    call.labels.freeze(call.walk.axis(weight, 0, "consumer"), "its rows are looked up by number")
    return along(call.walk.axis(weight, 1, "producer"), len(call.shape) - 1, call.shape)
