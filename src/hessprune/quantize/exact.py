"""Run a converted graph in integers, as ONNX Runtime does, and not in floats that are rounded after each operator.

ONNX Runtime replaces `dequantise → operator → quantise` by one kernel. The same is done here to a copy of the graph,
with the functions of `integers`; what has no kernel keeps its floats. The graph of the model stays what it is: that
one is exported.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from hessprune.foundation.quiet import quiet
from hessprune.operators.table import integer_kind
from hessprune.quantize import integers
from hessprune.quantize.integers import Grid
from hessprune.quantize.rewrite import aten

KernelCall = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # function, arguments, keyword arguments


def integer_graph(model: GraphModule) -> GraphModule:
    """Return a graph that computes in integers; it shares the buffers of `model`."""
    with quiet():
        graph = copy.deepcopy(model.graph)
    for node in list(graph.nodes):
        if _calls(node, "quantize_per_tensor"):
            _replace(node, _kernel(node) or (integers.quantize, (node.args[0], _grid(node)), {}))
    for node in list(graph.nodes):
        if node.target is aten.linear.default and (call := _layer(node, None)):  # its result is used in floats
            _replace(node, call)
    graph.eliminate_dead_code()
    return GraphModule(model, graph)


def _kernel(quantizer: Node) -> KernelCall | None:
    """Return the call that does what one kernel does from the integers that are read to those of a quantiser."""
    grid, node = _grid(quantizer), quantizer.all_input_nodes[0]
    if integer_kind(node.target) == "activation" and len(node.users) == 1 and _is_dropped(node, grid):
        node = node.all_input_nodes[0]
    if len(node.users) > 1 or node.kwargs:
        return None
    kind = integer_kind(node.target)
    if kind == "layer":
        return _layer(node, grid)
    if kind not in {"sum", "product", "pool"} or len(node.args) > 6:  # a mean with a divisor of its own
        return None
    number = 1 if kind == "pool" else 2
    read = [found for x in node.args[:number] if (found := _read(x))]
    if len(read) < number:
        return None
    values, grids = zip(*read, strict=True)
    settings = {"grids": (*grids, grid)} | ({} if number == 2 else {"arguments": node.args[1:]})
    if number == 1:
        return integers.average, values, settings
    return integers.add if kind == "sum" else integers.multiply, values, settings


def _layer(node: Node, grid: Grid | None) -> KernelCall | None:
    """Return the call that computes a layer, if it reads integers and has integer weights."""
    x, weight, bias, *arguments = (*node.args, *(None,) * (3 - len(node.args)))
    read, has_bias = _read(x), bias is not None
    if read is None or not all(_calls(item, "dequantize_per_channel") for item in (weight, bias)[: 1 + has_bias]):
        return None
    if node.target is aten.linear.default and node.meta["val"].dim() != 2:  # a product of matrices, its bias in floats
        return None
    weights = (*weight.args[:2], bias.args[0] if has_bias else None)  # type: ignore[union-attr]
    return integers.layer, (node.target, read[0], weights), {"arguments": arguments, "grids": (read[1], grid)}


def _read(x: Any) -> tuple[Node, Grid] | None:
    """Return the integers behind a value, and their grid."""
    while isinstance(x, Node) and integer_kind(x.target) == "same" and True not in x.args:
        x = x.args[0]
    return (x.args[0], _grid(x)) if _calls(x, "dequantize_per_tensor") else None  # type: ignore[return-value]


def _is_dropped(activation: Node, grid: Grid) -> bool:
    """Return whether the quantiser behind an activation clamps as much, as ONNX Runtime then leaves it to that."""
    bounds: tuple[Any, ...] = (0.0, float("inf"))
    if "relu6" in str(activation.target):
        bounds = (0.0, 6.0)
    elif "hardtanh" in str(activation.target):
        bounds = (*activation.args[1:], *(-1.0, 1.0)[len(activation.args) - 1 :])
    return tuple(integers.quantize(torch.tensor(bounds, device="cpu"), grid).tolist()) == grid.limits


def _grid(node: Node) -> Grid:
    """Return the grid of a node that quantises or dequantises a value."""
    return Grid(node.args[1], node.args[2], node.args[5])  # type: ignore[arg-type]


def _calls(node: Any, name: str) -> bool:
    return isinstance(node, Node) and str(node.target) == f"quantized_decomposed.{name}.default"


def _replace(node: Node, call: KernelCall) -> None:
    """Put a call in the place of a node."""
    with node.graph.inserting_before(node):
        node.replace_all_uses_with(node.graph.call_function(*call))
    node.graph.erase_node(node)
