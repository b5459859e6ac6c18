"""INT8: fake-quantised training, calibration, and graphs that runtimes run in integers."""

from hessprune.quantize.choice import choose_fp32_layers
from hessprune.quantize.config import QatConfig, Scheme
from hessprune.quantize.model import QuantizedModel
from hessprune.quantize.qat import calibrate, convert_qat, prepare_qat
from hessprune.quantize.sensitivity import LayerSensitivity, quantization_sensitivity

__all__ = [
    "LayerSensitivity",
    "QatConfig",
    "QuantizedModel",
    "Scheme",
    "calibrate",
    "choose_fp32_layers",
    "convert_qat",
    "prepare_qat",
    "quantization_sensitivity",
]
