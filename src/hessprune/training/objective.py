"""The objective of fine-tuning: a loss, and the distance to the dense model's outputs."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.losses import LossFn, as_cross_entropy, entropy_of
from hessprune.foundation.modules import logits_of
from hessprune.foundation.words import next_word
from hessprune.training.config import FinetuneConfig


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T²·KL(softmax(teacher/T) ‖ softmax(student/T))`, the mean over all positions.

    T² keeps the gradients' size independent of T.

    Args:
        student: Logits of shape (N, C, *K).
        teacher: Logits of the same shape.
        temperature: T > 0.

    Returns:
        A scalar, zero where both agree.

    References:
        Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network, arXiv:1503.02531, Section 2.

    Example:
        >>> import torch
        >>> logits = torch.randn(4, 3)
        >>> float(distillation_loss(logits, logits + 1, temperature=2.0)) < 1e-6
        True
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)  # (N, *K)
    return temperature**2 * divergence.mean()


def objective(
    output: Any, targets: Any, teacher_output: Any, config: FinetuneConfig, loss_fn: LossFn | None = None
) -> Tensor:
    """Return `(1 − w)·loss + w·T²·KL`; the loss alone without a teacher.

    Args:
        output: The model's whole output.
        targets: The targets of the batch.
        teacher_output: The teacher's output, or None.
        config: Settings.
        loss_fn: `(output, targets) → mean loss`; cross-entropy if None.
    """
    weight, entropy = config.distill_weight, as_cross_entropy(loss_fn)
    if teacher_output is None:
        return _loss(output, targets, config, entropy, loss_fn)
    student, teacher = logits_of(output), logits_of(teacher_output)
    if loss_fn is next_word:  # (N, T, V): words are last
        student, teacher = student.movedim(-1, 1), teacher.movedim(-1, 1)
    distance = distillation_loss(student, teacher, config.distill_temperature)
    if weight == 1:  # 0·CE would still be NaN where no label is known
        return distance
    return (1 - weight) * _loss(output, targets, config, entropy, loss_fn) + weight * distance


def _loss(
    output: Any, targets: Any, config: FinetuneConfig, entropy: nn.CrossEntropyLoss | None, loss_fn: LossFn | None
) -> Tensor:
    if entropy is None:
        assert loss_fn is not None
        return loss_fn(output, targets)
    return entropy_of(logits_of(output), targets, entropy, config.label_smoothing or entropy.label_smoothing)
