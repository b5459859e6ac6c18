"""Where integers begin and end, placed so that ONNX Runtime fuses every layer into one integer kernel.

A runtime replaces `dequantise → layer → quantise` by one kernel. So each value gets one quantiser, at the *end* of a
chain that one kernel computes: convolution or linear layer with its activation, residual addition with its ReLU,
pooling. Operators that only move values share the quantiser of what they move. What has no integer kernel (hardswish,
softmax, …) computes in floats between two quantisers.
"""

import operator
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from hessprune.operators.table import Integer, integer_kind
from hessprune.quantize.rewrite import MOVES, WEIGHT_AXES, aten, has_weight, layer_name

OPERANDS: dict[Integer | None, int] = {"sum": 2, "product": 2, "pool": 1, "lookup": 1}
"""Kinds of operators that run in integers beside the layers, and how many values they read."""


class FusionQuantizer(Quantizer):
    """Annotates a captured graph for torchao.

    Args:
        activation: How values are quantised.
        weight: How weights are, by axis of their output channels.
        keep_fp32: Names of layers that stay as they are.
    """

    def __init__(
        self, activation: QuantizationSpec, weight: Mapping[int, QuantizationSpec], keep_fp32: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.activation, self.weight, self.keep_fp32 = activation, weight, set(keep_fp32)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Note at every value and weight how it is quantised."""
        layers = [node for node in model.graph.nodes if self._is_integer(node)]
        values = {source(x) for node in layers for x in moved(node)}
        values |= {end(node) for node in layers if _needs_integers(end(node), node)}
        roots = _share(model, values)
        steps = _least_steps(roots)
        for value in values:
            shared = roots[value] is not value
            own = self._in_steps_of(steps[value]) if value in steps else self.activation
            _annotation(value).output_qspec = SharedQuantizationSpec(roots[value]) if shared else own
        for node in layers:
            if (axis := WEIGHT_AXES.get(integer_kind(node.target))) is not None:
                x, weight, bias, *_ = cast("tuple[Node, ...]", (*node.args, None))
                _annotation(node).input_qspec_map[weight] = self.weight[axis]
                if bias is not None and bias.op == "get_attr":  # a bias that depends on the inputs is added in floats
                    _annotation(node).input_qspec_map[bias] = _bias(source(x), (weight, node))
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept every model: what cannot be quantised stays in FP32."""

    def _in_steps_of(self, least: float) -> QuantizationSpec:
        """Return how values are quantised that must not have finer steps."""
        constructor: Any = self.activation.observer_or_fake_quant_ctr
        return replace(self.activation, observer_or_fake_quant_ctr=constructor.with_args(least_step=least))

    def _is_integer(self, node: Node) -> bool:
        """Return whether an operator is to run in integers: layers, and additions, products and means of images."""
        kind = integer_kind(node.target)
        if kind in WEIGHT_AXES:
            return has_weight(node) and layer_name(node) not in self.keep_fp32
        if OPERANDS.get(kind) == 2:
            return len(moved(node)) == 2 and node.meta["val"].dim() > 3 and not node.kwargs
        return kind in OPERANDS


def source(node: Node) -> Node:
    """Return the node whose values these are, before dropout."""
    while integer_kind(node.target) == "same":
        node = node.all_input_nodes[0]
    return node


def end(node: Node) -> Node:
    """Return the activation that one kernel computes together with `node`, or `node` itself."""
    user = next(iter(node.users), node)
    return user if len(node.users) == 1 and integer_kind(user.target) == "activation" else node


def moved(node: Node) -> list[Node]:
    """Return the values that an operator reads, without its weights."""
    if node.target is operator.getitem:
        node = node.all_input_nodes[0]
        return node.all_input_nodes[:1] if integer_kind(node.target) == "split" else []
    read = node.all_input_nodes[: None if integer_kind(node.target) in {"sum", "product", "join"} else 1]
    return [x for x in read if x.op != "get_attr" and isinstance(x.meta.get("val"), Tensor)]


def _needs_integers(value: Node, node: Node) -> bool:
    """Return whether the result of a kernel must be quantised; linear layers may return floats."""
    if "linear" in str(node.target):
        return False
    return "conv" in str(node.target) or any(user.op != "output" for user in value.users)


def _bias(x: Node, weight: tuple[Node, Node]) -> DerivedQuantizationSpec:
    """Return how a bias is added to the sums of a kernel: as int32, in steps of input scale times weight scale."""

    def scales(quantizers: list[Any]) -> tuple[Tensor, Tensor]:
        steps = quantizers[0].calculate_qparams()[0] * quantizers[1].calculate_qparams()[0]
        return steps, torch.zeros_like(steps, dtype=torch.int32)

    return DerivedQuantizationSpec(
        derived_from=[x, weight],
        derive_qparams_fn=scales,
        dtype=torch.int32,
        quant_min=torch.iinfo(torch.int32).min,
        quant_max=torch.iinfo(torch.int32).max,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


def _share(model: GraphModule, values: set[Node]) -> dict[Node, Node]:
    """Add what is moved into quantised values; return for each value the first of those that share its range."""
    root: dict[Node, Node] = {}
    order = {node: position for position, node in enumerate(model.graph.nodes)}

    def find(node: Node) -> Node:
        while root.setdefault(node, node) is not node:
            node = root[node]
        return node

    for node in reversed(model.graph.nodes):
        if node in values and (integer_kind(node.target) in {"move", "join"} or MOVES in node.meta):
            for x in map(source, moved(node)):
                values.add(x)
                first, second = sorted((find(node), find(x)), key=order.__getitem__)
                root[second] = first
    return {value: find(value) for value in values}


def _least_steps(roots: Mapping[Node, Node]) -> dict[Node, float]:
    """Return the least step of ranges that hold a softmax over N entries, 1/(128·N): half the range at equal shares.

    The kernel of ONNX Runtime multiplies 2³²/(e⁵·N) by the reciprocal of the step in 32 bits, which finer steps
    overflow. N = 2 is the worst case of an axis of any length; a single entry is always 1.
    """
    steps: dict[Node, float] = {}
    for value, root in roots.items():
        if value.target is aten.softmax.int:
            x, axis, *_ = value.args
            length = x.meta["val"].shape[axis]  # type: ignore[union-attr,index]
            least = 1 / (128 * length) if isinstance(length, int) else 1 / 256
            steps[root] = max(steps.get(root, 0.0), least)
    return steps


def _annotation(node: Node) -> QuantizationAnnotation:
    return node.meta.setdefault("quantization_annotation", QuantizationAnnotation(_annotated=True))
