"""The objective of fine-tuning: a loss, and the distance to the dense model's outputs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.foundation.losses import LossFn, as_cross_entropy, entropy_of, loss_weight
from hessprune.foundation.modules import logits_of
from hessprune.foundation.returned import check_depends, loss_on
from hessprune.foundation.texts import are_words_last, position_mask
from hessprune.foundation.words import IGNORED, next_word, word_entropy
from hessprune.training.config import FinetuneConfig


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, counted: Tensor | None = None) -> Tensor:
    """Return `T²·KL(softmax(teacher/T) ‖ softmax(student/T))`, the mean over all positions that count.

    T² keeps the gradients' size independent of T.

    Args:
        student: Logits of shape (N, C, *K).
        teacher: Logits of the same shape.
        temperature: T > 0.
        counted: The positions that count, `(N, *K)` bool; all of them if None.

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
    student, teacher = (each if each.dtype == torch.float64 else each.float() for each in (student, teacher))
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)  # (N, *K)
    if counted is None:
        return temperature**2 * divergence.mean()
    return temperature**2 * (divergence * counted).sum() / counted.sum().clamp(min=1)


def divisor(targets: Any, loss_fn: LossFn | None) -> float | None:
    """Return what the mean of a batch divides by: its labels that count, by their weights; None for rows.

    Example:
        >>> divisor(torch.tensor([1, -100, 0]), None)
        2.0
    """
    if not isinstance(targets, Tensor):
        return None
    if loss_fn is word_entropy:
        return float((targets != IGNORED).sum())
    entropy = as_cross_entropy(loss_fn)
    return None if entropy is None else loss_weight(entropy, targets)


def words_kept(logits: Tensor, inputs: Any, loss_fn: LossFn | None = None) -> Tensor | None:
    """Return the positions of texts that are no padding, `(N, T)` bool; None where all count.

    Args:
        logits: Of the model, `(N, T, V)` for texts.
        inputs: Of the batch, by name.
        loss_fn: That of the next word says that they are texts.
    """
    if not _has_words_last(logits, inputs, loss_fn):
        return None
    mask = position_mask(inputs, logits.shape[:2])
    return mask if mask is None else mask.to(logits.device)


def _has_words_last(logits: Tensor, inputs: Any, loss_fn: LossFn | None) -> bool:
    """Return whether words are the last axis, `(N, T, V)`."""
    return loss_fn in (next_word, word_entropy) or are_words_last(logits, inputs)


def objective(
    output: Any,
    targets: Any,
    teacher_output: Any,
    config: FinetuneConfig,
    loss_fn: LossFn | None = None,
    *,
    inputs: Any = None,
    of_labels: float = 1.0,
    of_rows: float = 1.0,
) -> Tensor:
    """Return `(1 − w)·loss + w·T²·KL`; the loss alone without a teacher.

    The logits of language models, `(N, T, V)`, are compared over words, at all positions but padding.

    Args:
        output: The model's whole output.
        targets: The targets of the batch.
        teacher_output: The teacher's output, or None.
        config: Settings.
        loss_fn: `(output, targets) → mean loss`; cross-entropy if None.
        inputs: Of the batch: words tell the axis of classes, and masks tell padding.
        of_labels: Factor of the loss, for a part of a batch.
        of_rows: Factor of the distance, for a part of a batch.
    """
    if teacher_output is None:
        return _loss(output, targets, config, loss_fn, of_labels)
    student, teacher = logits_of(output), logits_of(teacher_output)
    counted = words_kept(student, inputs, loss_fn)
    if _has_words_last(student, inputs, loss_fn):
        student, teacher = student.movedim(-1, 1), teacher.movedim(-1, 1)
    distance = of_rows * distillation_loss(student, teacher, config.distill_temperature, counted)
    weight = config.distill_weight
    if weight == 1:  # 0·CE would still be NaN where no label is known
        return distance
    return (1 - weight) * _loss(output, targets, config, loss_fn, of_labels) + weight * distance


def _loss(output: Any, targets: Any, config: FinetuneConfig, loss_fn: LossFn | None, factor: float) -> Tensor:
    if factor == 0:  # no label counts, and their mean would be NaN; gradients still have to meet
        return 0.0 * logits_of(output).sum()
    entropy = as_cross_entropy(loss_fn)
    if loss_fn is word_entropy:
        return factor * word_entropy(output, targets, smoothing=config.label_smoothing)
    if entropy is None:
        assert loss_fn is not None
        loss = loss_on(loss_fn, output, targets)
        if torch.is_grad_enabled() and logits_of(output).requires_grad:
            check_depends(loss)
        return factor * loss
    return factor * entropy_of(logits_of(output), targets, entropy, config.label_smoothing or entropy.label_smoothing)
