"""The peer of INT8, ONNX Runtime's own `quantize_static`, and what an ONNX file's predictions are compared by."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from hessprune.deploy.onnx_model import OnnxModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Accuracy in points, share of the float model's predictions, and mean `KL(p ‖ p')` in nats."""

    accuracy: float
    agreement: float
    divergence: float

    @classmethod
    def of(cls, logits: Tensor, reference: Tensor, labels: Tensor) -> "Scores":
        """Compare logits with labels and with those of the float model."""
        p, q = (x.double().log_softmax(1) for x in (reference, logits))
        return cls(
            accuracy=100 * float((logits.argmax(1) == labels).double().mean()),
            agreement=float((logits.argmax(1) == reference.argmax(1)).double().mean()),
            divergence=float((p.exp() * (p - q)).sum(1).mean()),
        )


def logits_of(model: nn.Module | Path, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    runs = model if isinstance(model, nn.Module) else OnnxModel(model)
    with torch.no_grad():
        return torch.cat([runs(inputs) for inputs, _ in batches])


class Reader(CalibrationDataReader):
    """Hands batches to the peer."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch[0].numpy()}


def by_the_peer(path: Path, calibration: list[tuple[Tensor, Tensor]], out: Path, kind: str) -> Path:
    """Quantise with ONNX Runtime's own tool, per channel, in its recommended format."""
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(path, prepared)
    quantize_static(
        prepared,
        out,
        Reader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=kind == "reduced",
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out
