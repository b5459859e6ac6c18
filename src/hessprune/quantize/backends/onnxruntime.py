"""ONNX Runtime on CPUs: it runs the exported file and fuses each layer with its quantisers into one integer kernel."""

from collections.abc import Collection
from typing import Any

from hessprune.quantize.backend import Backend


def make_quantizer(activations: str, weight_bits: int, keep_fp32: Collection[str]) -> Any:
    """Return a quantiser that places integers where ONNX Runtime fuses."""
    from hessprune.quantize.quantizer import FusionQuantizer  # with torchao, which takes seconds to import
    from hessprune.quantize.ranges import activation_spec, weight_specs

    return FusionQuantizer(activation_spec(activations), weight_specs(weight_bits), keep_fp32)


BACKEND = Backend(name="onnxruntime", package="onnxruntime", make_quantizer=make_quantizer)
