"""The epoch that a training kept: a number, or none, which leaves the model as it came."""

from collections.abc import Sequence

from hessprune.foundation.ranks import rank_of
from hessprune.lab.report.run_report import EpochPoint, RunReport


def kept_epoch(epochs: Sequence[EpochPoint]) -> int | None:
    """Return the epoch that a training kept: of the best accuracy or perplexity, then of the lowest loss, the first.

    Example:
        >>> from hessprune.lab.report.kept_epochs import kept_epoch
        >>> from hessprune.lab.report.run_report import EpochPoint
        >>> points = [(0, 0.2, 0.9), (1, 0.3, 0.9), (2, 0.1, 0.8)]
        >>> kept_epoch([
        ...     EpochPoint(epoch=epoch, train_loss=None, validation_loss=loss, validation_accuracy=accuracy)
        ...     for epoch, loss, accuracy in points
        ... ])
        0
    """
    if not epochs:
        return None
    return max(epochs, key=_rank).epoch


def _rank(point: EpochPoint) -> tuple[float, float]:
    """Return what the training chose by."""
    words = point.validation_perplexity
    return rank_of(point.validation_accuracy, words, point.validation_loss, lower_is_better=words is not None)


def kept_whole(report: RunReport) -> tuple[str, ...]:
    """Say of which trainings epoch 0 was kept, because none improved the model."""
    names = {"finetune": "Fine-tuning", "quantize": "Training with rounding"}
    return tuple(
        f"{names[name]}: epoch 0 was kept, training did not improve it."
        for name, epochs in report.history.items()
        if name in names and len(epochs) > 1 and kept_epoch(epochs) == 0
    )
