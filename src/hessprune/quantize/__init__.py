"""INT8: fake-quantised training, calibration, and graphs that runtimes run in integers."""

from hessprune.quantize.model import QuantizedModel
from hessprune.quantize.qat import QAT_DEFAULTS, calibrate, convert_qat, prepare_qat

__all__ = ["QAT_DEFAULTS", "QuantizedModel", "calibrate", "convert_qat", "prepare_qat"]
