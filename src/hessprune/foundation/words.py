"""Words of texts: the one that each position predicts, and how surprised a model is by it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.batches import IGNORED
from hessprune.foundation.modules import logits_of
from hessprune.foundation.texts import has_decoder, masks_of, position_mask, tokens_of
from hessprune.foundation.trees import describe


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

    Words with the label −100 do not count, and the first of each text is not predicted. This function sees no inputs.
    Where it is the `loss_fn` of a stage, also by its name `"next_word"`, the stage leaves out padding as perplexity
    does: see `predicted_words`.

    Raises:
        DataError: The targets are no words of the model.

    Example:
        >>> sure = 50.0 * F.one_hot(torch.tensor([[2, 0, 0]]), 3)
        >>> round(float(next_word(sure, torch.tensor([[1, 2, 0]]))), 3)
        0.0
    """
    return word_entropy(output, predicted_words(logits_of(output), None, targets, asker="next_word"))


def word_entropy(output: Any, words: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of words that stand where they are predicted; zero where none counts.

    Args:
        output: A model's output, with logits `(N, T, V)`.
        words: From `predicted_words`.
        smoothing: Probability mass moved from the word to all words alike.
    """
    logits = logits_of(output).flatten(0, 1)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits, words.flatten(), ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    return total / max(int((words != IGNORED).sum()), 1)


def shifts_words(model: Any) -> bool:
    """Return whether a model's output at a position is the prediction of the next word of its own inputs.

    The labels of encoder–decoder pairs and of masked language models stand in the places of their predictions.
    """
    pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return not pair and not any(kind.__name__.endswith("ForMaskedLM") for kind in type(model).__mro__)


def predicted_words(
    logits: Tensor | None, inputs: Any, labels: Any = None, *, shift: bool = True, asker: str = "perplexity"
) -> Tensor:
    """Return the word that each position predicts, `(N, T)` in int64; −100 where none counts.

    A word counts unless its label is −100, its position is padding, or the position before it, which predicts it, is
    padding. The last holds for the first word of a text that is padded on its left. Hugging Face's own loss knows only
    labels of −100: with `labels=input_ids.clone()` it counts padding, too; this function does not.

    Args:
        logits: `(N, T, V)`, by which words are checked; None where they are not known yet.
        inputs: The model's inputs: `input_ids` `(N, T)`, or a mapping that holds them, and masks as `position_mask`
            reads them. Of an encoder–decoder pair without labels, the next words of `decoder_input_ids` are meant.
        labels: The words that count, `(N, T)`, −100 elsewhere; None for all words that are no padding.
        shift: True where labels are the words of the inputs, each predicted by the position before; False where they
            stand in the places of their predictions.
        asker: What messages call the caller.

    Raises:
        DataError: The logits are not those of one word at each position, there are no labels where they are needed, or
            labels are no words of the model.

    Example:
        >>> mask = torch.tensor([[0, 1, 1, 1]])
        >>> predicted_words(torch.zeros(1, 4, 9), {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": mask})
        tensor([[-100,    6,    7, -100]])
    """
    placed = labels is not None and (not shift or has_decoder(inputs))
    words = own_words(inputs, shift=shift, asker=asker) if labels is None else labels
    words = _integers(logits, words, asker)
    kept = _kept(inputs, words, asker, alone=labels is None)
    counted = kept & (words != IGNORED)
    predicted = words.new_full(words.shape, IGNORED)
    if placed:
        predicted = words.where(counted, predicted)
    else:
        predicted[:, :-1] = words[:, 1:].where(counted[:, 1:] & kept[:, :-1], predicted[:, 1:])
    return predicted if logits is None else check_words(logits, predicted, asker=asker)


def own_words(inputs: Any, *, shift: bool, asker: str = "perplexity") -> Tensor | None:
    """Return the words of a model's inputs that it predicts, where there are no labels.

    Args:
        inputs: As for `predicted_words`.
        shift: As for `predicted_words`.
        asker: What messages call the caller.

    Raises:
        DataError: The model predicts other words.
    """
    if not shift and not (has_decoder(inputs) and inputs.get("decoder_input_ids") is not None):
        raise DataError(
            f"`batches` must hold labels for {asker} of a model that does not predict the next word of its own inputs, "
            "got inputs alone. Give (inputs, labels) with −100 where no word counts; an encoder–decoder pair also "
            "takes `decoder_input_ids`."
        )
    return tokens_of(inputs)


def check_words(logits: Tensor, words: Tensor, *, asker: str = "perplexity") -> Tensor:
    """Return words if they fit the logits `(N, T, V)`: one for each row, each that counts below V.

    Raises:
        DataError: They do not.
    """
    words = _integers(logits, words, asker)
    counted = words[words != IGNORED]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < logits.shape[2]:
        raise DataError(
            f"words in `batches` must be in [0, {logits.shape[2]}), the model's number of words, got values from "
            f"{int(counted.min())} to {int(counted.max())}. Take the model's own tokenizer, and give labels of −100 to "
            "words that do not count."
        )
    return words


@torch.no_grad()
def next_words(
    logits: Tensor, inputs: Any, labels: Any = None, *, shift: bool = True, asker: str = "perplexity"
) -> NextWords:
    """Return how surprised a model is by the words of some texts.

    Args:
        logits: `(N, T, V)`.
        inputs: As for `predicted_words`, which says what counts.
        labels: The words that count, `(N, T)`, −100 elsewhere; None for all words that are no padding.
        shift: True where the output at a position is the prediction of the next one.
        asker: What messages call the caller.

    Raises:
        DataError: As `predicted_words` raises.

    Example:
        >>> from hessprune.foundation.words import next_words
        >>> found = next_words(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        >>> found.number, round(found.surprise / found.number, 3)  # log 4
        (2, 1.386)
    """
    surprise, right, number = 0.0, 0, 0
    words = predicted_words(logits, inputs, labels, shift=shift, asker=asker)
    for guess, word in zip(logits, words, strict=True):
        counted = word != IGNORED  # one text at a time: logits of many words are large
        guess, word = guess[counted], word[counted]
        guess = guess if guess.dtype == torch.float64 else guess.float()
        surprise += float(F.cross_entropy(guess, word, reduction="sum"))
        right, number = right + int((guess.argmax(-1) == word).sum()), number + len(word)
    return NextWords(surprise=surprise, right=right, number=number)


def _kept(inputs: Any, words: Tensor, asker: str, *, alone: bool) -> Tensor:
    """Return the positions that are no padding.

    Raises:
        DataError: There are no labels, and no mask has a shape from which padding can be read.
    """
    mask = position_mask(inputs, words.shape)
    if mask is not None:
        return mask.to(words.device)
    for name, other in masks_of(inputs):
        if alone:
            raise DataError(
                f"`{name}` in `batches` must say which words are padding for {asker}, got {describe(other)} for words "
                f"{describe(words)}. Give a mask of the shape {tuple(words.shape)}, or labels that are −100 at padding."
            )
    return torch.ones_like(words, dtype=torch.bool)


def _integers(logits: Tensor | None, words: Any, asker: str) -> Tensor:
    """Return the words in int64, on the device of the logits.

    Raises:
        DataError: There is no integer word for each row of logits.
    """
    fit = logits is None or (logits.dim() == 3 and isinstance(words, Tensor) and words.shape == logits.shape[:2])
    if not fit or not isinstance(words, Tensor) or words.dim() != 2:
        raise DataError(
            f"{asker} needs logits (N, T, words) and a word at each position, got {describe(logits)} for "
            f"{describe(words)}. Give batches of `input_ids`, or labels of the shape (N, T)."
        )
    if words.is_floating_point() or words.dtype == torch.bool:
        raise DataError(
            f"words in `batches` must be integers for {asker}, got {describe(words)}. Give token ids, such as "
            "`input_ids.long()`."
        )
    return words.to(words.device if logits is None else logits.device, torch.int64)
