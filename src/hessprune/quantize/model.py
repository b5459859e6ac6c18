"""A captured graph with quantisers in it; unlike other captured graphs it changes its mode and copies itself."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode

from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import switch_graphs
from hessprune.quantize.exact import integer_graph

_FACTS = "hessprune"  # the key of our entries in `GraphModule.meta`, which copies take along


class QuantizedModel(GraphModule):
    """A model between `prepare_qat` and the runtime; call, train, evaluate, time and export it like any other.

    Attributes:
        stage: `"prepared"`: numbers are rounded in floating point, for calibration and training. `"converted"`:
            weights are integers. The graph, which is exported, quantises and dequantises around each operator; a call
            computes the integers that ONNX Runtime computes, bit for bit. For `"x86-inductor"` it runs the graph.
        target: The runtime that the quantisers are placed for.
        fp32_layers: Layers that keep their numbers, each with the reason.
    """

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "QuantizedModel") -> None:
        super().__init__(root, graph, class_name)
        self.meta.update(getattr(root, "meta", {}))

    @property
    def stage(self) -> Literal["prepared", "converted"]:
        """How far the model is."""
        return self.meta[_FACTS]["stage"]

    @property
    def target(self) -> str:
        """The runtime."""
        return self.meta[_FACTS]["target"]

    @property
    def fp32_layers(self) -> dict[str, str]:
        """Names and reasons of layers left in FP32."""
        return dict(self.meta[_FACTS]["fp32_layers"])

    def recompile(self) -> PythonCode:
        """Take over what the graph says now."""
        code = super().recompile()
        type(self).forward = _choosing(type(self).forward)  # every graph has a class of its own
        return code

    def train(self, mode: bool = True) -> "QuantizedModel":
        """Switch the mode, dropout included."""
        super().train(mode)
        switch_graphs(self, mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModel":
        with quiet():
            return super().__deepcopy__(memo)  # type: ignore[return-value]  # of the class of `self`


def _choosing(simulated: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that runs the graph itself while it is captured or compiled, and its integers otherwise."""
    integer: Callable[..., Any] | None = None

    @functools.wraps(simulated)
    def forward(self: QuantizedModel, *args: Any, **kwargs: Any) -> Any:
        nonlocal integer
        facts = self.meta.get(_FACTS, {})
        if facts.get("stage") != "converted" or facts["target"] == "x86-inductor" or torch.compiler.is_compiling():
            return simulated(self, *args, **kwargs)
        integer = integer or type(integer_graph(self)).forward
        return integer(self, *args, **kwargs)  # with the buffers that `self` has now

    return forward


def quantized(graph: GraphModule, **facts: object) -> QuantizedModel:
    """Wrap a graph of torchao, in evaluation mode; `facts` are the attributes of `QuantizedModel`."""
    model = QuantizedModel(graph, graph.graph)
    model.meta[_FACTS] = facts
    return model.eval()
