"""The values of fine-tuning: what is asked (`FinetuneConfig`) and what came of it (`EpochRecord`, `FinetuneResult`)."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.formatting import shown
from hessprune.foundation.ranks import rank_of


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """How to fine-tune; everything random follows from `seed`.

    Attributes:
        epochs: Passes over the training batches; 0 at most re-estimates BatchNorm.
        lr: Peak learning rate, reached after the warm-up.
        optimizer: `"sgd"` (with Nesterov momentum) or `"adamw"`.
        momentum: Momentum of SGD, in [0, 1); AdamW takes (momentum, 0.999).
        weight_decay: For weights only; biases and normalisation parameters are never decayed.
        warmup_fraction: Share of all steps over which the learning rate rises linearly.
        label_smoothing: Probability mass moved from the label to all classes alike.
        distill_weight: w in `(1 − w)·CE + w·T²·KL(teacher ‖ student)`.
        distill_temperature: T, which divides both models' logits inside KL.
        precision: Type of the forward pass (autocast); parameters and loss stay in float32.
        clip_norm: Largest gradient norm over all parameters; None does not clip.
        reestimate_batchnorm: Let the model with BatchNorm statistics of about 8 000 training samples stand for epoch 0
            where it validates better: pruning shifts them.
        freeze_ranges_at: Share of all steps after which the activation ranges of a fake-quantised model stay; 1 never.
        freeze_batchnorm_at: Share of all steps after which BatchNorm keeps its statistics and uses them; 1 never.
        seed: Of data order, augmentation and dropout.
        checkpoint_every_steps: Steps between checkpoints; one more is written after each epoch.

    Example:
        >>> import hessprune as hp
        >>> hp.FinetuneConfig(epochs=3, lr=0.01).epochs
        3
    """

    epochs: int = 10
    lr: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_fraction: float = 0.05
    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 4.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: float | None = None
    reestimate_batchnorm: bool = True
    freeze_ranges_at: float = 1.0
    freeze_batchnorm_at: float = 1.0
    seed: int = 0
    checkpoint_every_steps: int = 200

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        for name in ("epochs", "seed"):
            check_range(name, getattr(self, name), low=0, integer=True)
        check_range("checkpoint_every_steps", self.checkpoint_every_steps, low=1, integer=True)
        for name in (
            "momentum",
            "warmup_fraction",
            "label_smoothing",
            "distill_weight",
            "freeze_ranges_at",
            "freeze_batchnorm_at",
        ):
            check_range(name, getattr(self, name), low=0, high=1)
        if self.momentum == 1:
            raise ArgumentError("`momentum` must be below 1, where a gradient is forgotten some day, got 1. Pass 0.9.")
        check_range("weight_decay", self.weight_decay, low=0)
        _check_positive("lr", self.lr)
        _check_positive("distill_temperature", self.distill_temperature)
        if self.clip_norm is not None:
            _check_positive("clip_norm", self.clip_norm)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One line of the history; epoch 0 is the model before training, without a training loss.

    Attributes:
        epoch: Number of the epoch, from 1; 0 is before training.
        train_loss: Mean over samples of the training objective, distillation and smoothing included.
        validation_loss: Mean loss on the validation batches.
        validation_accuracy: In [0, 1]; None where targets are no labels of the outputs.
        lr: Learning rate of the epoch's last step.
        seconds: Wall-clock time of the epoch, validation included.
        validation_metric: The metric, if one was given.
        lower_is_better: True if the metric is the perplexity.
    """

    epoch: int
    train_loss: float | None
    validation_loss: float
    validation_accuracy: float | None
    lr: float
    seconds: float
    validation_metric: float | None = None
    lower_is_better: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """The order of epochs: by metric or accuracy, then by loss, as small validation sets are soon all correct."""
        return rank_of(
            self.validation_accuracy,
            self.validation_metric,
            self.validation_loss,
            lower_is_better=self.lower_is_better,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """The best model by `EpochRecord.rank` (the earlier one of equals), in evaluation mode, and how it came about."""

    model: nn.Module
    history: tuple[EpochRecord, ...]
    best_epoch: int


def _check_positive(name: str, value: float) -> None:
    check_range(name, value, low=0)
    if not 0 < value < float("inf"):
        raise ArgumentError(f"`{name}` must be a finite number above 0, got {shown(value)}. Choose a positive one.")
