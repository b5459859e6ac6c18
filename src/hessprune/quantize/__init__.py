"""INT8: fake-quantised training, calibration, and graphs that runtimes run in integers."""

from hessprune.quantize.config import QatConfig
from hessprune.quantize.model import QuantizedModel
from hessprune.quantize.qat import calibrate, convert_qat, prepare_qat

__all__ = ["QatConfig", "QuantizedModel", "calibrate", "convert_qat", "prepare_qat"]
