"""Words of texts: the next one at each position, and how surprised a model is by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.modules import logits_of
from hessprune.foundation.trees import describe, tensors_in

IGNORED = -100
"""The label of words that do not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NextWords:
    """Sums over the words of one batch."""

    surprise: float
    """`−Σ log p(word | words before)`, in nats."""
    right: int
    """Words that were the most probable ones."""
    number: int


def next_word(output: Any, targets: Any) -> Tensor:
    """Return the mean cross-entropy of the next word, for logits `(N, T, V)` and the words `(N, T)` themselves.

    Words with the label −100 do not count, and the first of each text is not predicted.

    Example:
        >>> sure = 50.0 * F.one_hot(torch.tensor([[2, 0, 0]]), 3)
        >>> round(float(next_word(sure, torch.tensor([[1, 2, 0]]))), 3)
        0.0
    """
    logits = logits_of(output)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORED)


def is_next_word(loss_fn: Any) -> bool:
    """Return whether a loss is that of the next word, as it is without any."""
    return loss_fn is None or loss_fn is next_word


@torch.no_grad()
def next_words(logits: Tensor, inputs: Any, labels: Any = None, *, shift: bool = True) -> NextWords:
    """Return how surprised a model is by the words of some texts.

    Args:
        logits: `(N, T, V)`.
        inputs: The model's inputs: `input_ids` `(N, T)`, or a mapping that holds them.
        labels: The words that count, `(N, T)`, −100 elsewhere; None for all words that are no padding.
        shift: True where the output at a position is the prediction of the next one.

    Raises:
        DataError: The logits are not those of one word at each position.

    Example:
        >>> from hessprune.foundation.words import next_words
        >>> found = next_words(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        >>> found.number, round(found.surprise / found.number, 3)  # log 4
        (2, 1.386)
    """
    words = _words(inputs) if labels is None else labels
    if logits.dim() != 3 or not isinstance(words, Tensor) or words.shape != logits.shape[:2]:
        raise DataError(
            f"perplexity needs logits (N, T, words) and a word at each position, got {describe(logits)} for "
            f"{describe(words)}. Give batches of `input_ids`, or labels of the shape (N, T)."
        )
    words = words.to(logits.device)
    surprise, right, number = 0.0, 0, 0
    for guess, word in zip(logits[:, :-1] if shift else logits, words[:, 1:] if shift else words, strict=True):
        counted = word != IGNORED  # one text at a time: logits of many words are large
        guess, word = guess[counted], word[counted].long()
        guess = guess if guess.dtype == torch.float64 else guess.float()
        surprise += float(F.cross_entropy(guess, word, reduction="sum"))
        right, number = right + int((guess.argmax(-1) == word).sum()), number + len(word)
    return NextWords(surprise=surprise, right=right, number=number)


def _words(inputs: Any) -> Any:
    """Return the words of inputs, −100 for padding."""
    if not isinstance(inputs, Mapping):
        return next(iter(tensors_in(inputs)), None)
    words, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if words is None or mask is None or mask.shape != words.shape:
        return words
    return words.masked_fill(mask.to(words.device) == 0, IGNORED)
