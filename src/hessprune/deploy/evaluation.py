"""Accuracy, loss and metric of a model, or of an ONNX file."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessprune.deploy.onnx_model import OnnxModel
from hessprune.errors import ArgumentError, DataError, NumericalError
from hessprune.foundation.arrival import observed
from hessprune.foundation.batches import Pairs
from hessprune.foundation.checks import check_batches
from hessprune.foundation.formatting import shown
from hessprune.foundation.losses import LossFn, as_cross_entropy, count_labelled, entropy_of, labels_for
from hessprune.foundation.modules import device_of, forward, logits_of
from hessprune.foundation.progress import track
from hessprune.foundation.ranks import rank_of
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, tensors_in, to_device
from hessprune.foundation.words import NextWords, is_next_word, next_words

Metric = Callable[[Any, Any], float] | Literal["perplexity"]
"""From a model's whole output and the targets of a batch to a number, the higher the better; or perplexity."""
PERPLEXITY = "perplexity"
LARGEST = 700.0
"""Nats of a word, of which `exp` is still a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a model does on a data set.

    Attributes:
        accuracy: Fraction of right predictions over all labelled positions, in [0, 1]; None where targets are no labels
            of the outputs.
        loss: Mean loss: over labelled positions for cross-entropy, over samples for another loss.
        num_samples: Samples read (a dense target counts once, whatever its number of positions).
        metric: Mean of the metric over samples, or the perplexity; None without one.
        lower_is_better: True if the metric is the perplexity.
    """

    accuracy: float | None
    loss: float
    num_samples: int
    metric: float | None = None
    lower_is_better: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """The order of models, the best highest: by metric or accuracy, then by loss."""
        return rank_of(self.accuracy, self.metric, self.loss, lower_is_better=self.lower_is_better)


def evaluate(
    model: nn.Module | str | Path,
    batches: Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Measure accuracy, mean loss and a metric in evaluation mode, in one pass over `batches`.

    With logits z of shape (N, C, *K) and labels y of shape (N, *K), accuracy and cross-entropy are means over the M
    positions whose label is not ignored: `accuracy = 1/M Σ [argmax z = y]` and `loss = 1/M Σ loss(z, y)`. Class
    probabilities of shape (N, C, *K) are labels too; the most probable class counts. Any other `loss_fn` sees the
    model's whole output and the targets as they are, and its means over batches are averaged by samples. Mode and
    random state stay as they were.

    The metric `"perplexity"` is for language models: `exp(−1/M Σ log p(word | words before))` over the M words of all
    batches but the first of each text. Words are the labels, or `input_ids` where there are none; those with the label
    −100 or under an `attention_mask` of 0 are not counted. Accuracy and loss are then those of the next word, too,
    unless `loss_fn` says otherwise. Encoder–decoder pairs need labels, the words in the places of their predictions.

    Args:
        model: The model, on any device, or the path of an ONNX file.
        batches: Re-iterable of (inputs, targets).
        loss_fn: `(output, targets) → mean loss of the batch`; cross-entropy if None.
        metric: `(output, targets) → mean of the batch`, the higher the better; or `"perplexity"`, the lower the better.

    Returns:
        Accuracy, loss, metric and the number of samples.

    Raises:
        ArgumentError: The path is not that of an ONNX file, or `metric` is no function and no known name.
        DataError: The batches are empty or one-shot, do not fit the model, or hold labels out of range.
        MissingDependencyError: A path is given and ONNX Runtime is not installed.
        NumericalError: Some outputs are NaN or infinite.

    Example:
        >>> import torch, hessprune as hp
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
        >>> hp.evaluate(torch.nn.Identity(), batches).accuracy
        0.75
    """
    _check_metric(metric)
    model = OnnxModel(model) if isinstance(model, str | Path) else observed(model)
    device, totals = device_of(model), _totals(model, loss_fn, metric)
    with seeded(0), evaluation_mode(model), torch.no_grad():
        check_batches(batches)
        for inputs, targets in track(Pairs(batches, model), "evaluating"):
            output = forward(model, to_device(inputs, device))
            _check_finite(output)
            totals.add(output, to_device(targets, device), inputs)
    return totals.result()


def _check_metric(metric: Any) -> None:
    if metric is not None and metric != PERPLEXITY and not callable(metric):
        raise ArgumentError(
            f"`metric` must be a function of (output, targets) or {PERPLEXITY!r}, got {shown(metric)}. Write "
            f"metric={PERPLEXITY!r} for a language model."
        )


def _totals(model: nn.Module, loss_fn: LossFn | None, metric: Metric | None) -> "_Totals":
    """Return empty sums for a model and its metric; words alone where nothing else is asked for."""
    if metric != PERPLEXITY:
        return _Totals(loss_fn, metric)
    pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return _Words(None if is_next_word(loss_fn) else loss_fn, shift=not pair)


class _Totals:
    """Sums over batches."""

    def __init__(self, loss_fn: LossFn | None, metric: Callable[[Any, Any], float] | None) -> None:
        self.loss_fn, self.metric, self.entropy = loss_fn, metric, as_cross_entropy(loss_fn)
        self.correct = self.labelled = self.samples = 0
        self.loss = self.weight = self.score = 0.0
        self.has_labels = True

    def add(self, output: Any, targets: Any, inputs: Any) -> None:
        """Add one batch."""
        samples = leading_size(inputs)
        self.samples += samples
        if self.metric is not None:
            self.score += float(self.metric(output, targets)) * samples
        if self.entropy is not None:
            self._add_labels(logits_of(output), targets, self.entropy)
        else:
            assert self.loss_fn is not None
            self.loss += float(self.loss_fn(output, targets)) * samples
            self.weight += samples
            self._count_if_labels(output, targets)

    def result(self) -> Evaluation:
        """Return the means.

        Raises:
            DataError: No label counts.
        """
        if not self.weight:
            raise DataError("`batches` must hold at least one label that counts, got none. Check the targets.")
        accuracy = self.correct / self.labelled if self.has_labels and self.labelled else None
        metric = None if self.metric is None else self.score / self.samples
        return Evaluation(accuracy=accuracy, loss=self.loss / self.weight, num_samples=self.samples, metric=metric)

    def _add_labels(self, logits: Tensor, targets: Any, entropy: nn.CrossEntropyLoss) -> None:
        targets = labels_for(logits, targets, ignore_index=entropy.ignore_index)
        if labelled := count_labelled(targets, entropy.ignore_index):
            loss = entropy_of(logits, targets, entropy)
            self.loss, self.weight = self.loss + float(loss) * labelled, self.weight + labelled
            self._count(logits, targets, entropy.ignore_index)

    def _count(self, logits: Tensor, targets: Tensor, ignore_index: int) -> None:
        labels = targets.argmax(1) if targets.is_floating_point() else targets
        counted = labels != ignore_index
        self.labelled += int(counted.sum())
        self.correct += int(((logits.argmax(1) == labels) & counted).sum())

    def _count_if_labels(self, output: Any, targets: Any) -> None:
        """Count right predictions where the targets are integer labels of the outputs, whatever the loss."""
        logits = logits_of(output)
        is_label = isinstance(targets, Tensor) and not targets.is_floating_point() and logits.dim() >= 2
        self.has_labels &= is_label and targets.shape == (*logits.shape[:1], *logits.shape[2:])
        if self.has_labels:
            self._count(logits, targets, -100)


class _Words(_Totals):
    """Sums over batches of texts.

    Args:
        loss_fn: Another loss than that of the next word.
        shift: True where the output at a position is the prediction of the next one.
    """

    def __init__(self, loss_fn: LossFn | None, *, shift: bool) -> None:
        super().__init__(loss_fn, None)
        self._shift, self._surprise, self._words, self._right = shift, 0.0, 0, 0

    def add(self, output: Any, targets: Any, inputs: Any) -> None:
        """Add one batch."""
        found: NextWords = next_words(logits_of(output), inputs, targets, shift=self._shift)
        self._surprise, self._words = self._surprise + found.surprise, self._words + found.number
        self._right += found.right
        if self.loss_fn is not None:
            super().add(output, targets, inputs)
        else:
            self.samples += leading_size(inputs)

    def result(self) -> Evaluation:
        """Return the means, and the perplexity.

        Raises:
            DataError: No word counts.
        """
        if not self._words:
            raise DataError(
                "`batches` must hold at least one word that counts, got none. Give texts of two words or more."
            )
        mean = self._surprise / self._words
        other = super().result() if self.loss_fn is not None else None
        return Evaluation(
            accuracy=self._right / self._words,
            loss=mean if other is None else other.loss,
            num_samples=self.samples,
            metric=math.exp(min(mean, LARGEST)),
            lower_is_better=True,
        )


def _check_finite(output: Any) -> None:
    if not all(
        bool(torch.isfinite(tensor).all()) for tensor in tensors_in(_tree(output)) if tensor.is_floating_point()
    ):
        raise NumericalError(
            "outputs must be finite, got NaN or infinity. Likely (a) weights that diverged: take an earlier "
            "checkpoint; (b) inputs that hold NaN: check their scale; (c) fp16 overflow: use fp32 or bf16."
        )


def _tree(output: Any) -> Any:
    return output if isinstance(output, Tensor | dict | tuple | list) else vars(output)
