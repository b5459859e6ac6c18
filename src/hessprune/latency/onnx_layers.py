"""Single layers as ONNX files in memory, with the operators that a layer of an exported network has."""

from typing import Any

import numpy as np

from hessprune.foundation.checks import optional_import
from hessprune.latency.timers import Case

OPSET, IR_VERSION = 20, 10
NAMES = {"Conv": ("Conv", "QLinearConv"), "ConvTranspose": ("ConvTranspose", ""), "Linear": ("Gemm", "QLinearMatMul")}
"""ONNX operator of each layer in floats and in integers; the name is empty if ONNX has no integer operator."""


def layer_bytes(case: Case, *, int8: bool) -> tuple[bytes, np.ndarray]:
    """Return the bytes of a file with one layer, and an input `x` of zeros."""
    inputs, outputs, groups = case.shape.at(case.inputs, case.outputs)
    x = np.zeros((case.shape.rows[0], inputs, *case.shape.rows[1:]), dtype=np.float32)
    weight = np.zeros(_weight_shape(case, inputs, outputs, groups), dtype=np.float32)
    operator, attributes = _operator(case, groups)
    floats, integers = NAMES[operator]
    if int8 and integers:
        x, weight = x.astype(np.uint8), weight.astype(np.int8)
        return _file(integers, attributes, x, _integer_inputs(operator, weight, outputs)), x
    return _file(floats, attributes, x, {"weight": weight, "bias": np.zeros(outputs, np.float32)}), x


def _weight_shape(case: Case, inputs: int, outputs: int, groups: int) -> tuple[int, ...]:
    if case.shape.kind == "linear":
        return inputs, outputs
    axes = (inputs, outputs // groups) if case.shape.transposed else (outputs, inputs // groups)
    return *axes, *case.shape.kernel


def _operator(case: Case, groups: int) -> tuple[str, dict[str, Any]]:
    """Return the name and the ONNX attributes of a layer's operator."""
    shape = case.shape
    if shape.kind == "linear":
        return "Linear", {}
    pads = {"pads": [*shape.padding, *shape.padding], "strides": shape.stride, "dilations": shape.dilation}
    if shape.transposed:
        return "ConvTranspose", {**pads, "group": groups, "output_padding": shape.output_padding}
    return "Conv", {**pads, "group": groups}


def _integer_inputs(operator: str, weight: np.ndarray, outputs: int) -> dict[str, np.ndarray]:
    """Return weight, bias, scales and zero points of an integer layer; the weight has one scale per output channel."""
    scale, zero = np.array(0.02, np.float32), np.array(128, np.uint8)
    named = {"x_scale": scale, "x_zero": zero, "weight": weight}
    named |= {"weight_scale": np.full(outputs, 0.01, np.float32), "weight_zero": np.zeros(outputs, np.int8)}
    named |= {"y_scale": scale, "y_zero": zero}
    return named | ({"bias": np.zeros(outputs, np.int32)} if operator == "Conv" else {})


def _file(operator: str, attributes: dict[str, Any], x: np.ndarray, inputs: dict[str, np.ndarray]) -> bytes:
    onnx = optional_import("onnx", "export")
    helper, tensor = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *inputs], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", tensor, x.shape)],
        [helper.make_tensor_value_info("y", tensor, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
