"""Losses as functions of outputs and targets: which of them is cross-entropy, and what it asks of labels."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import DataError
from hessprune.foundation.checks import check_labels
from hessprune.foundation.texts import are_words_last
from hessprune.foundation.trees import describe

LossFn = Callable[[Any, Any], Tensor]
"""From a model's whole output and the targets of a batch to their mean loss."""


def as_cross_entropy(loss_fn: LossFn | None) -> nn.CrossEntropyLoss | None:
    """Return the module that a loss stands for if it is a cross-entropy, None for any other loss.

    The negative log-likelihood of log-probabilities is one, too.

    Example:
        >>> import torch.nn.functional as F
        >>> as_cross_entropy(F.cross_entropy), as_cross_entropy(F.mse_loss)
        (CrossEntropyLoss(), None)
    """
    if loss_fn in (None, F.cross_entropy, F.nll_loss):
        return nn.CrossEntropyLoss()
    if isinstance(loss_fn, nn.NLLLoss) and type(loss_fn).forward is nn.NLLLoss.forward:
        # of log-probabilities `f`: log softmax(f) = f
        return nn.CrossEntropyLoss(loss_fn.weight, ignore_index=loss_fn.ignore_index, reduction=loss_fn.reduction)
    is_module = isinstance(loss_fn, nn.CrossEntropyLoss) and type(loss_fn).forward is nn.CrossEntropyLoss.forward
    return cast(nn.CrossEntropyLoss, loss_fn) if is_module else None


def labels_for(logits: Tensor, targets: Any, name: str = "batches", *, ignore_index: int = -100) -> Tensor:
    """Return targets in the form that cross-entropy takes, on the device of the logits.

    Labels of any integer type or of bool become int64, `(N, 1)` labels `(N,)`.

    Args:
        logits: `(N, C, *K)`.
        targets: Labels `(N, *K)`, or class probabilities `(N, C, *K)`.
        name: The argument that messages name.
        ignore_index: The label of positions that do not count.

    Raises:
        DataError: Shapes differ, labels are out of range, or floating-point targets are no probabilities.
    """
    targets = as_labels(logits, targets, name)
    per_position = (*logits.shape[:1], *logits.shape[2:])
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise DataError(
            f"the model must return logits of shape (N, classes, ...) for cross-entropy, got {describe(logits)}. "
            "Pass the loss that it was trained with as `loss_fn`."
        )
    if tuple(targets.shape) != (tuple(logits.shape) if targets.is_floating_point() else per_position):
        raise DataError(
            f"targets in `{name}` must hold one integer label (or one row of probabilities) per output, got "
            f"{describe(targets)} for logits {describe(logits)}. {squeeze_remedy(logits, targets)}Give labels of shape "
            f"{per_position}, or the loss that takes these targets as `loss_fn`."
        )
    if targets.is_floating_point():
        _check_probabilities(targets, name)
    else:
        check_labels(targets.where(targets != ignore_index, -100), logits.shape[1], name)
    return targets


def check_class_axis(logits: Tensor, targets: Any, inputs: Any) -> None:
    """Raise where classes lie on the last axis, as of language models, and cross-entropy would take axis 1.

    With as many words in a text as in the vocabulary, the shapes `(N, T, T)` and `(N, T)` say nothing. So the inputs
    decide: where they are `(N, T)` words or their embeddings, `logits` has a row for each. Models of images with
    logits `(N, C, L)` and masks `(N, L)` are not meant.

    Args:
        logits: Of the model.
        targets: Integer labels `(N, T)`, or None; others are not checked.
        inputs: Of the batch.

    Raises:
        DataError: The logits have a row for each word.
    """
    is_label = targets is None or (
        isinstance(targets, Tensor) and not targets.is_floating_point() and targets.shape == logits.shape[:2]
    )
    if is_label and are_words_last(logits, inputs):
        raise DataError(
            "logits must have classes along axis 1 for cross-entropy, got "
            f"{describe(logits)}, a row for each word of the inputs. For a language model write loss_fn='next_word', "
            "for labels of words a function that returns cross_entropy(logits.flatten(0, 1), labels.flatten())."
        )


def are_labels(logits: Tensor, targets: Any) -> bool:
    """Return whether targets are labels or class probabilities of the logits, by shape and kind.

    Example:
        >>> logits = torch.zeros(2, 3)
        >>> are_labels(logits, torch.tensor([0, 1])), are_labels(logits, torch.randn(2, 3)), are_labels(logits, None)
        (True, False, False)
    """
    if logits.dim() < 2 or logits.shape[1] < 2:
        return False
    try:
        labels = as_labels(logits, targets)
    except DataError:
        return False
    if not labels.is_floating_point():
        return tuple(labels.shape) == (*logits.shape[:1], *logits.shape[2:])
    return labels.shape == logits.shape and are_probabilities(labels)


def squeeze_remedy(logits: Any, targets: Any) -> str:
    """Return the remedy for masks `(N, 1, *K)` beside logits `(N, C, *K)`; an empty string for others.

    Example:
        >>> squeeze_remedy(torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8).long())
        'Drop the axis of one channel: targets.squeeze(1). '
    """
    if not isinstance(targets, Tensor) or not isinstance(logits, Tensor) or targets.dim() < 3:
        return ""
    is_mask = targets.shape[1] == 1 and targets.shape[2:] == logits.shape[2:] and not targets.is_floating_point()
    return "Drop the axis of one channel: targets.squeeze(1). " if is_mask else ""


def as_labels(logits: Tensor, targets: Any, name: str = "batches") -> Tensor:
    """Return targets as a tensor on the device of the logits: labels in int64, `(N, 1)` labels as `(N,)`.

    Raises:
        DataError: There are no targets, or they are no tensor and cannot be made one.
    """
    if targets is None:
        raise DataError(
            f"`{name}` must hold labels for cross-entropy, got inputs alone. Yield (inputs, labels), or pass `loss_fn`."
        )
    if not isinstance(targets, Tensor):
        targets = _tensor(targets, name)
    targets = targets.to(logits.device)
    if targets.is_floating_point():
        return targets
    targets = targets.long()
    return targets.squeeze(1) if targets.dim() == logits.dim() == 2 and targets.shape[1] == 1 else targets


def loss_weight(loss: nn.Module | None, targets: Tensor) -> float:
    """Return what a batch counts in the mean of a loss: the class weights of its counted labels, or their number.

    Example:
        >>> loss_weight(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), torch.tensor([0, 1, -100]))
        4.0
    """
    if not isinstance(loss, nn.CrossEntropyLoss):
        return float(len(targets))
    if targets.is_floating_point():
        return targets.numel() / targets.shape[1]
    labels = targets[targets != loss.ignore_index].long()
    return float(labels.numel() if loss.weight is None else loss.weight.to(labels.device)[labels].double().sum())


def entropy_of(logits: Tensor, targets: Tensor, loss: nn.CrossEntropyLoss, smoothing: float | None = None) -> Tensor:
    """Return the mean cross-entropy as a module computes it, in at least float32; smoothing may be given instead."""
    weight = None if loss.weight is None else loss.weight.to(logits.device)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        logits,
        targets if not targets.is_floating_point() else targets.to(logits),
        weight=weight if weight is None else weight.to(logits),
        ignore_index=loss.ignore_index,
        label_smoothing=loss.label_smoothing if smoothing is None else smoothing,
    )


def loss_name(loss_fn: Any) -> str:
    """Return a name for the provenance: the class or function that computes the loss."""
    return "cross_entropy" if loss_fn is None else getattr(loss_fn, "__name__", type(loss_fn).__name__)


def _tensor(targets: Any, name: str) -> Tensor:
    try:
        return targets if isinstance(targets, Tensor) else torch.as_tensor(targets, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"targets in `{name}` must be a tensor of labels for cross-entropy, got {describe(targets)}. "
            "Pass the loss that takes these targets as `loss_fn`."
        ) from error


def are_probabilities(targets: Tensor) -> bool:
    """Return whether rows along axis 1 are distributions."""
    sums = targets.sum(1)
    return not bool((targets < -1e-6).any()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _check_probabilities(targets: Tensor, name: str) -> None:
    if not are_probabilities(targets):
        raise DataError(
            f"floating-point targets in `{name}` must be class probabilities for cross-entropy, got rows that do not "
            "add up to 1. Pass the loss that takes these targets as `loss_fn`, such as loss_fn=torch.nn.MSELoss()."
        )
