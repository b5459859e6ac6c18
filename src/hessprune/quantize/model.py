"""The quantised model: a captured graph with quantisers that can change its mode and be copied."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode

from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import switch_graphs
from hessprune.quantize.backend import find_backend
from hessprune.quantize.exact import integer_graph
from hessprune.quantize.sizes import Sizes, check_sizes

_FACTS = "hessprune"  # the key of our entries in `GraphModule.meta`, which copies take along


class QuantizedModel(GraphModule):
    """A model between `prepare_qat` and the runtime; call, train, evaluate, time and export it like any other.

    Attributes:
        stage: `"prepared"`: numbers are rounded in floating point, for calibration and training. `"converted"`:
            weights are integers. The exported graph quantises and dequantises around each operator; a call computes
            the integers of ONNX Runtime bit for bit, or runs the graph: the backend's `execution` decides.
        target: The runtime that the quantisers are placed for.
        fp32_layers: Layers that stay in FP32, each with the reason.
        sizes: The sizes of inputs that it accepts.
        export_tolerance: Largest relative difference that `export_onnx` accepts: the backend's `tolerance`.
    """

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str = "QuantizedModel") -> None:
        super().__init__(root, graph, class_name)
        self.meta.update(getattr(root, "meta", {}))

    @property
    def stage(self) -> Literal["prepared", "converted"]:
        """The last step that the model went through."""
        return self.meta[_FACTS]["stage"]

    @property
    def target(self) -> str:
        """The runtime that the quantisers are placed for."""
        return self.meta[_FACTS]["target"]

    @property
    def export_tolerance(self) -> float:
        """Largest difference from the ONNX file, relative to the largest output."""
        return find_backend(self.target).tolerance

    @property
    def fp32_layers(self) -> dict[str, str]:
        """Layers that stay in FP32, each with the reason."""
        return dict(self.meta[_FACTS]["fp32_layers"])

    @property
    def sizes(self) -> dict[int | str, list[Sizes]]:
        """The sizes of the tensors of each argument, by position or name; None for an axis of any size."""
        return self.meta.get(_FACTS, {}).get("sizes", {})  # none yet while torch builds or copies the module

    def recompile(self) -> PythonCode:
        """Update the forward after a change of the graph."""
        code = super().recompile()
        type(self).forward = _choosing(type(self).forward)  # every graph has a class of its own
        return code

    def train(self, mode: bool = True) -> "QuantizedModel":
        """Switch the mode, that of dropout in the graph included."""
        super().train(mode)
        switch_graphs(self, mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedModel":
        with quiet():
            return super().__deepcopy__(memo)  # type: ignore[return-value]  # of the class of `self`


def _choosing(simulated: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that computes in integers; while torch captures or compiles the model, it runs the graph.

    The sizes of inputs are checked first.
    """
    integer: Callable[..., Any] | None = None

    @functools.wraps(simulated)
    def forward(self: QuantizedModel, *args: Any, **kwargs: Any) -> Any:
        nonlocal integer
        if not torch.compiler.is_compiling():
            check_sizes(self.sizes, args, kwargs)
        if torch.compiler.is_compiling() or not _computes_integers(self):
            return simulated(self, *args, **kwargs)
        integer = integer or type(integer_graph(self)).forward
        return integer(self, *args, **kwargs)  # with the buffers that `self` has now

    return forward


def _computes_integers(model: QuantizedModel) -> bool:
    facts = model.meta.get(_FACTS, {})  # none yet while torch builds or copies the module
    return facts.get("stage") == "converted" and find_backend(facts["target"]).execution == "integers"


def quantized(graph: GraphModule, **facts: object) -> QuantizedModel:
    """Wrap a graph of torchao and put it into evaluation mode; `facts` are the attributes of `QuantizedModel`."""
    model = QuantizedModel(graph, graph.graph)
    model.meta[_FACTS] = facts
    return model.eval()
