"""Accuracy and loss of a model, or of an ONNX file."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.deploy.onnx_model import OnnxModel
from hessprune.errors import DataError, NumericalError
from hessprune.foundation.checks import check_batches, check_labels
from hessprune.foundation.modules import device_of, predict
from hessprune.foundation.progress import track
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import describe, leading_size, to_device

LossFn = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a model does on a data set.

    Attributes:
        accuracy: Fraction of right predictions over all labelled positions, in [0, 1].
        loss: Mean loss over the same positions.
        num_samples: Samples read (a dense target counts once, whatever its number of positions).
    """

    accuracy: float
    loss: float
    num_samples: int


def evaluate(model: nn.Module | str | Path, batches: Iterable[Any], *, loss_fn: LossFn | None = None) -> Evaluation:
    """Measure accuracy and mean loss in evaluation mode, in one pass over `batches`.

    With logits z of shape (N, C, *K) and targets y of shape (N, *K), both are means over the M positions whose target
    is not −100: `accuracy = 1/M Σ [argmax z = y]` and `loss = 1/M Σ loss(z, y)`. Floating-point targets of shape
    (N, C, *K) are class probabilities; their label is the most probable class. Leaves mode and random state untouched.

    Args:
        model: The model, on any device, or the path of an ONNX file.
        batches: Re-iterable of (inputs, targets).
        loss_fn: `(logits, targets) → mean loss of the batch`; cross-entropy by default.

    Returns:
        Accuracy, loss and the number of samples.

    Raises:
        ArgumentError: The path is not that of an ONNX file.
        DataError: The batches are empty or one-shot, do not fit the model, or hold labels out of range.
        MissingDependencyError: A path is given and ONNX Runtime is not installed.
        NumericalError: Some logits are NaN or infinite.

    Example:
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
        >>> evaluate(nn.Identity(), batches).accuracy
        0.75
    """
    correct = positions = num_samples = 0
    total_loss = 0.0
    model = model if isinstance(model, nn.Module) else OnnxModel(model)
    device = device_of(model)
    with seeded(0), evaluation_mode(model), torch.no_grad():
        check_batches(batches)
        for inputs, targets in track(batches, "evaluating"):
            logits = predict(model, to_device(inputs, device))
            check_targets(logits, targets)
            _check_finite(logits)
            targets, labelled = targets.to(device), count_labelled(targets)
            num_samples += leading_size(inputs)
            if labelled:
                positions += labelled
                correct += _count_correct(logits, targets)
                total_loss += float((loss_fn or cross_entropy)(logits, targets)) * labelled
    if not positions:
        raise DataError("`batches` must hold at least one label other than -100, got none. Check the targets.")
    return Evaluation(accuracy=correct / positions, loss=total_loss / positions, num_samples=num_samples)


def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy in at least float32; integer targets of any width."""
    targets = targets if targets.is_floating_point() else targets.long()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def check_targets(logits: Tensor, targets: Tensor, name: str = "batches") -> None:
    """Raise unless `logits` and `targets` belong together.

    Raises:
        DataError: Shapes differ or labels are out of range.
    """
    per_position = (*logits.shape[:1], *logits.shape[2:])
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise DataError(f"the model must return logits of shape (N, classes, ...), got {describe(logits)}.")
    if tuple(targets.shape) != (tuple(logits.shape) if targets.is_floating_point() else per_position):
        raise DataError(
            f"targets in `{name}` must hold one integer label (or one row of probabilities) per output, got "
            f"{describe(targets)} for logits {describe(logits)}. Give labels of shape {per_position}."
        )
    check_labels(targets, logits.shape[1], name)


def _check_finite(logits: Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError(
            "logits must be finite, got NaN or infinity. Likely (a) weights that diverged: take an earlier checkpoint; "
            "(b) inputs that hold NaN: check their scale; (c) fp16 overflow: use fp32 or bf16."
        )


def count_labelled(targets: Tensor) -> int:
    """Return the number of positions with a label: all but those marked −100."""
    if targets.is_floating_point():
        return targets.numel() // targets.shape[1]
    return int((targets != -100).sum())


def _count_correct(logits: Tensor, targets: Tensor) -> int:
    labels = targets.argmax(1) if targets.is_floating_point() else targets
    return int((logits.argmax(1) == labels).sum())  # −100 never equals a class
