"""What a prepared graph is made of: its layers, their weights, and the quantisers around them."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from hessprune.foundation.batches import Pairs
from hessprune.foundation.modules import device_of, predict, split_name
from hessprune.foundation.progress import track
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import to_device
from hessprune.operators.table import integer_kind
from hessprune.quantize.rewrite import WEIGHT_AXES, layer_name, tensor_of

if TYPE_CHECKING:
    from hessprune.quantize.ranges import ActivationQuantizer, WeightQuantizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One use of a weight in a prepared graph.

    Attributes:
        layer: Dotted name of the layer.
        param: Dotted name of the weight.
        node: The operator; it reads a value, the rounded weight and the bias.
        weight: The weight's quantiser.
        values: The nodes that quantise what it reads and returns, except what is rounded whether or not this layer is:
            operands and results of additions, products and means.
    """

    layer: str
    param: str
    node: Node
    weight: "WeightQuantizer"
    values: tuple[Node, ...]

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the layer without its bias."""
        return self.node.target(x, weight, None, *self.node.args[3:])  # type: ignore[operator]


def uses(model: GraphModule) -> list[Use]:
    """Return every use of a weight that is rounded, in the order of the graph."""
    from hessprune.quantize.quantizer import end, source  # needs torchao, which made the model

    found = []
    for node in model.graph.nodes:
        if (
            integer_kind(node.target) in WEIGHT_AXES
            and isinstance(read := node.args[1], Node)
            and read.op == "call_module"
        ):
            param = str(read.args[0].target)  # type: ignore[union-attr]
            around = (source(node.args[0]), *end(node).users)  # type: ignore[arg-type]
            found.append(
                Use(
                    layer=split_name(param)[0],
                    param=param,
                    node=node,
                    weight=model.get_submodule(str(read.target)),  # type: ignore[arg-type]
                    values=tuple(value for value in around if quantizer_of(model, value) and _is_spared(value)),
                )
            )
    return found


def _is_spared(value: Node) -> bool:
    """Return whether a value would stay as it is if the layers around it did."""
    from hessprune.quantize.quantizer import OPERANDS  # needs torchao, which made the model

    maker = value.args[0]
    while isinstance(maker, Node) and integer_kind(maker.target) == "activation":
        maker = maker.args[0]
    return not any(integer_kind(node.target) in OPERANDS for node in (maker, *value.users) if isinstance(node, Node))


def quantizer_of(model: GraphModule, node: Node) -> "ActivationQuantizer | None":
    """Return the quantiser that a node calls on a value."""
    from hessprune.quantize.ranges import ActivationQuantizer  # needs torchao, which made the model

    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, ActivationQuantizer) else None


def activation_quantizers(model: nn.Module) -> dict[str, "ActivationQuantizer"]:
    """Return every quantiser of a value, with the operator that it follows."""
    assert isinstance(model, GraphModule)
    found: dict[ActivationQuantizer, str] = {}
    for node in model.graph.nodes:
        module = quantizer_of(model, node)
        if module is not None:
            found.setdefault(module, layer_name(node.args[0]))
    return {f"{position}: {name}": module for position, (module, name) in enumerate(found.items())}


def weights_read(model: GraphModule) -> "Iterator[tuple[WeightQuantizer, Tensor]]":
    """Yield the quantiser of every weight with the weight as it is now."""
    from hessprune.quantize.ranges import WeightQuantizer  # needs torchao, which made the model

    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, WeightQuantizer) and node.args[0].op == "get_attr":
            yield module, tensor_of(model, node.args[0])


class _Spy(nn.Module):
    """Hands what a node reads to a function."""

    def __init__(self, see: Callable[..., None]) -> None:
        super().__init__()
        self.see = see

    def forward(self, *values: Tensor) -> None:
        """Pass the values on."""
        self.see(*values)


@contextlib.contextmanager
def spying(model: GraphModule, views: Mapping[Node, Callable[..., None]]) -> Iterator[None]:
    """Show every node's result, and the first value that it reads, to a function whenever the graph runs."""
    spies = []
    for position, (node, see) in enumerate(views.items()):
        model.add_submodule(f"_spy{position}", _Spy(see))
        with model.graph.inserting_after(node):
            spies.append(model.graph.call_module(f"_spy{position}", (node, node.args[0])))
    model.recompile()
    try:
        yield
    finally:
        for spy in spies:
            model.graph.erase_node(spy)
            delattr(model, str(spy.target))
        model.recompile()


def run_all(model: nn.Module, batches: Iterable[Any], label: str) -> None:
    """Run a model on every batch, for what its spies and quantisers see."""
    with seeded(0), torch.no_grad():
        for inputs, _ in track(Pairs(batches, model), label):
            predict(model, to_device(inputs, device_of(model)))
