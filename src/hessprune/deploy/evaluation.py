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
from hessprune.foundation.arguments import argument_names
from hessprune.foundation.arrival import observed
from hessprune.foundation.batches import Pairs
from hessprune.foundation.checks import check_batches, check_numbers
from hessprune.foundation.formatting import shown
from hessprune.foundation.losses import (
    LossFn,
    as_cross_entropy,
    check_class_axis,
    entropy_of,
    labels_for,
    loss_weight,
)
from hessprune.foundation.modules import device_of, forward, logits_of
from hessprune.foundation.named_losses import loss_of
from hessprune.foundation.progress import track
from hessprune.foundation.ranks import rank_of
from hessprune.foundation.returned import check_average, number_on
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.texts import by_name
from hessprune.foundation.trees import leading_size, tensors_in, to_device
from hessprune.foundation.words import next_word, next_words, own_words, shifts_words

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
    loss_fn: LossFn | str | None = None,
    metric: Metric | None = None,
) -> Evaluation:
    """Measure accuracy, mean loss and a metric in evaluation mode, in one pass over `batches`.

    With logits z of shape (N, C, *K) and labels y of shape (N, *K), accuracy and cross-entropy are means over the M
    positions whose label is not ignored: `accuracy = 1/M Σ [argmax z = y]` and `loss = 1/M Σ loss(z, y)`. Class
    probabilities of shape (N, C, *K) are labels too; the most probable class counts. Any other `loss_fn` sees the
    model's whole output and the targets as they are, and its means over batches are averaged by samples. Mode and
    random state stay as they were.

    The metric `"perplexity"` is for language models: `exp(−1/M Σ log p(word | words before))` over the M words of all
    batches but the first of each text. Words are the labels, or `input_ids` where there are none. A word is not counted
    if its label is −100, or if it or the word before it is padding: under an `attention_mask` of 0, whatever its label.
    Accuracy and loss are then those of the next word, too, unless `loss_fn` says otherwise; `loss_fn="next_word"` gives
    them without the metric. The labels of encoder–decoder pairs stand in the places of their predictions; without any,
    the next words of `decoder_input_ids` are meant. Masked language models need labels.

    Args:
        model: The model, on any device, or the path of an ONNX file.
        batches: Re-iterable of (inputs, targets).
        loss_fn: `(output, targets) → mean loss of the batch`, or `"next_word"`; cross-entropy if None.
        metric: `(output, targets) → mean of the batch`, the higher the better; or `"perplexity"`, the lower the better.

    Returns:
        Accuracy, loss, metric and the number of samples.

    Raises:
        ArgumentError: The path is not that of an ONNX file, or `loss_fn` or `metric` is no function of two arguments to
            one number, and no known name.
        DataError: The batches are empty or one-shot, do not fit the model, hold labels out of range, or lack targets.
        MissingDependencyError: A path is given and ONNX Runtime is not installed.
        NumericalError: Some outputs are NaN or infinite, the metric is NaN, or weights hold no numbers.

    Example:
        >>> import torch, hessprune as hp
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
        >>> hp.evaluate(torch.nn.Identity(), batches).accuracy
        0.75
    """
    _check_metric(metric)
    loss = loss_of(loss_fn)
    check_average(loss)
    model = OnnxModel(model) if isinstance(model, str | Path) else observed(model)
    check_numbers(model)
    device, totals = device_of(model), _totals(model, loss, metric)
    with seeded(0), evaluation_mode(model), torch.no_grad():
        check_batches(batches)
        for inputs, targets in track(Pairs(batches, model), "evaluating"):
            totals.check(inputs, targets)
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
    if metric != PERPLEXITY and loss_fn is not next_word:
        return _Totals(loss_fn, metric)
    return _Words(None if loss_fn is next_word else loss_fn, metric, model)


class _Totals:
    """Sums over batches."""

    def __init__(self, loss_fn: LossFn | None, metric: Callable[[Any, Any], float] | None) -> None:
        self.loss_fn, self.metric, self.entropy = loss_fn, metric, as_cross_entropy(loss_fn)
        self.correct = self.labelled = self.samples = 0
        self.loss = self.weight = self.score = 0.0
        self.has_labels = True

    def check(self, inputs: Any, targets: Any) -> None:
        """Raise before a model runs if a batch lacks what must be known."""

    def add(self, output: Any, targets: Any, inputs: Any) -> None:
        """Add one batch."""
        samples = self._score(output, targets, inputs)
        if self.entropy is not None:
            check_class_axis(logits_of(output), targets, inputs)
            self._add_labels(logits_of(output), targets, self.entropy)
        else:
            assert self.loss_fn is not None
            self.loss += number_on(self.loss_fn, output, targets, "loss_fn") * samples
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
        loss, metric = self.loss / self.weight, self._mean_metric()
        return Evaluation(accuracy=accuracy, loss=loss, num_samples=self.samples, metric=metric)

    def _score(self, output: Any, targets: Any, inputs: Any) -> int:
        """Count the samples of a batch, add their metric, and return their number."""
        samples = leading_size(inputs)
        self.samples += samples
        if self.metric is not None:
            self.score += number_on(self.metric, output, targets, "metric") * samples
            _check_score(self.score)
        return samples

    def _mean_metric(self) -> float | None:
        return None if self.metric is None else self.score / self.samples

    def _add_labels(self, logits: Tensor, targets: Any, entropy: nn.CrossEntropyLoss) -> None:
        targets = labels_for(logits, targets, ignore_index=entropy.ignore_index)
        if weight := loss_weight(entropy, targets):
            loss = entropy_of(logits, targets, entropy)
            self.loss, self.weight = self.loss + float(loss) * weight, self.weight + weight
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
        metric: The perplexity, or another one.
        model: Tells which words its output at a position predicts, and the names of its inputs.
    """

    def __init__(self, loss_fn: LossFn | None, metric: Metric | None, model: nn.Module) -> None:
        super().__init__(loss_fn, metric if callable(metric) else None)
        self._has_perplexity = metric == PERPLEXITY
        self._asker = "perplexity" if self._has_perplexity else "next_word"
        self._names, shift = argument_names(model), shifts_words(model)
        self._shift, self._surprise, self._words, self._right = shift, 0.0, 0, 0

    def check(self, inputs: Any, targets: Any) -> None:
        """Raise unless a batch holds the words that the model predicts."""
        if targets is None:
            own_words(by_name(self._names, inputs), shift=self._shift, asker=self._asker)

    def add(self, output: Any, targets: Any, inputs: Any) -> None:
        """Add one batch."""
        named = by_name(self._names, inputs)
        found = next_words(logits_of(output), named, targets, shift=self._shift, asker=self._asker)
        self._surprise, self._words = self._surprise + found.surprise, self._words + found.number
        self._right += found.right
        if self.loss_fn is not None:
            super().add(output, targets, inputs)
        else:
            self._score(output, targets, inputs)

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
            metric=math.exp(min(mean, LARGEST)) if self._has_perplexity else self._mean_metric(),
            lower_is_better=self._has_perplexity,
        )


def _check_score(score: float) -> None:
    if math.isnan(score):
        raise NumericalError(
            "`metric` must be a number for each batch, got NaN. Likely it divides by zero where a batch lacks a class: "
            "return 0 there, or make batches larger."
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
