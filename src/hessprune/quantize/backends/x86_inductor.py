"""`torch.compile` on x86 CPUs: torchao's own quantiser places the integers, and inductor compiles the graph."""

from collections.abc import Collection
from typing import Any

from hessprune.quantize.backend import Backend


def make_quantizer(activations: str, weight_bits: int, keep_fp32: Collection[str]) -> Any:
    """Return torchao's quantiser for x86, with our fake quantisers in it."""
    from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig  # seconds to import
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    from hessprune.quantize.ranges import activation_spec, weight_specs

    activation, weight = activation_spec(activations), weight_specs(weight_bits)[0]
    quantizer = X86InductorQuantizer().set_global(QuantizationConfig(activation, activation, weight, None, is_qat=True))
    for name in keep_fp32:
        quantizer.set_module_name_qconfig(name, None)
    return quantizer


BACKEND = Backend(name="x86-inductor", package="torchao", make_quantizer=make_quantizer, execution="graph")
