"""What fine-tuning minimises: cross-entropy, and the distance to the dense model's answers."""

import torch.nn.functional as F
from torch import Tensor

from hessprune.deploy.evaluation import cross_entropy
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


def objective(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None, config: FinetuneConfig) -> Tensor:
    """Return `(1 − w)·CE + w·T²·KL`; cross-entropy alone without a teacher."""
    weight, smoothing = config.distill_weight, config.label_smoothing
    if teacher_logits is None:
        return cross_entropy(logits, targets, smoothing)
    distance = distillation_loss(logits, teacher_logits, config.distill_temperature)
    if weight == 1:  # 0·CE would still be NaN where no label is known
        return distance
    return (1 - weight) * cross_entropy(logits, targets, smoothing) + weight * distance
