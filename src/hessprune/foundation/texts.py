"""Texts among the inputs of a model: their tokens, and the mask that tells words from padding."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hessprune.foundation.arguments import argument_names
from hessprune.foundation.trees import tensors_in

TOKENS = ("decoder_input_ids", "input_ids", "tgt")
"""Names of inputs that are numbers of words."""
EMBEDDED = ("decoder_inputs_embeds", "inputs_embeds")
"""Names of inputs that are embeddings of words."""
DECODER, KEPT = "decoder_attention_mask", "attention_mask"
"""Names of inputs that say which positions count."""
TARGET = "tgt_key_padding_mask"
PADDED = ("src_key_padding_mask", "key_padding_mask", "padding_mask", TARGET)
"""Names of inputs that are true where a position is padding."""
BESIDE = ("position", "type", "segment", "lang")
"""Parts of names of numbers that stand beside each word."""
_TARGETS = ("decoder_", "tgt")
"""Beginnings of the names of a decoder's inputs, as transformers or torch names them."""
BLOCKED = -1e3
"""Masks that are added to scores block a position by less than this."""


def by_name(names: Sequence[str], inputs: Any) -> Any:
    """Return inputs that stand in a row by the names of their arguments, so that a mask among them is known.

    Example:
        >>> by_name(("input_ids", "attention_mask", "labels"), (1, 2))
        {'input_ids': 1, 'attention_mask': 2}
    """
    fits = isinstance(inputs, tuple | list) and len(inputs) <= len(names)
    return dict(zip(names, inputs, strict=False)) if fits else inputs


def has_decoder(inputs: Any, beginnings: tuple[str, ...] = ("decoder_",)) -> bool:
    """Return whether inputs hold those of a decoder beside those of an encoder, by the beginnings of their names.

    Example:
        >>> has_decoder({"input_ids": 1, "decoder_input_ids": 2}), has_decoder({"input_ids": 1})
        (True, False)
    """
    return isinstance(inputs, Mapping) and any(
        str(name).startswith(beginnings) and value is not None for name, value in inputs.items()
    )


def tokens_remedy(inputs: Any) -> str:
    """Return the remedy for lists of numbers where tensors should be, as tokenizers give them; else an empty string.

    Example:
        >>> tokens_remedy({"input_ids": [[1, 2], [3, 4]]})
        ' Make tensors of the lists, as tokenizer(texts, padding=True, return_tensors="pt") does.'
    """
    is_listed = isinstance(inputs, Mapping) and any(map(_holds_numbers, inputs.values()))
    return (
        ' Make tensors of the lists, as tokenizer(texts, padding=True, return_tensors="pt") does.' if is_listed else ""
    )


def _holds_numbers(value: Any) -> bool:
    """Return whether a value is a list of numbers, or of such lists."""
    if not isinstance(value, tuple | list) or not value:
        return False
    return isinstance(value[0], int | float) or _holds_numbers(value[0])


def tokens_of(inputs: Any) -> Tensor | None:
    """Return the tokens `(N, T)` that a model reads, of a pair of encoder and decoder the decoder's; None without."""
    first = next(tensors_in(inputs), None)
    named = [inputs[name] for name in TOKENS if name in inputs] if isinstance(inputs, Mapping) else []
    tokens = named[0] if named else first
    is_text = isinstance(tokens, Tensor) and tokens.dim() == 2 and not tokens.is_floating_point()
    return tokens if is_text else None


def are_words_last(logits: Tensor, inputs: Any) -> bool:
    """Return whether logits `(N, T, V)` hold a row for each word of the inputs, so that classes lie on the last axis.

    Example:
        >>> import torch
        >>> tokens = torch.zeros(2, 3, dtype=torch.int64)
        >>> are_words_last(torch.zeros(2, 3, 9), tokens), are_words_last(torch.zeros(2, 9, 3), tokens)
        (True, False)
    """
    embedded = [inputs[name] for name in EMBEDDED if name in inputs] if isinstance(inputs, Mapping) else []
    words = tokens_of(inputs) if not embedded else embedded[0]
    return isinstance(words, Tensor) and logits.dim() == 3 and logits.shape[:2] == words.shape[:2]


def masks_of(inputs: Any, *, encoder: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield the masks among keyword arguments that speak of the outputs' positions, with their names.

    Args:
        inputs: Of the batch. Beside a decoder, `attention_mask` is the encoder's, which says nothing of the decoder.
        encoder: True for outputs of the encoder.
    """
    if not isinstance(inputs, Mapping):
        return
    for name in (DECODER, TARGET) if has_decoder(inputs, _TARGETS) and not encoder else (KEPT, *PADDED[:-1]):
        if isinstance(inputs.get(name), Tensor):
            yield name, inputs[name]


def position_mask(inputs: Any, positions: Sequence[int], *, encoder: bool = False) -> Tensor | None:
    """Return which positions `(N, T)` hold words and not padding, in bool; None where no mask says so.

    Masks are `(N, T)` or `(1, T)`. Of masks over pairs of positions, `(N, T, T)` or `(N, heads, T, T)`, a position is
    padding if none looks at it. Masks of floating-point numbers may be 0 and 1, or what is added to scores.

    Args:
        inputs: Of the batch.
        positions: `(N, T)`.
        encoder: True for outputs of the encoder.

    Example:
        >>> import torch
        >>> position_mask({"attention_mask": torch.tensor([[1, 1, 0]])}, (1, 3))
        tensor([[ True,  True, False]])
    """
    samples, length = positions[:2]
    for name, mask in masks_of(inputs, encoder=encoder):
        if 2 <= mask.dim() <= 4 and mask.shape[0] in (1, samples) and mask.shape[-1] == length:
            kept = ~mask.bool() if name in PADDED else _kept(mask)
            return (
                kept.flatten(1, -2).any(1).expand(samples, length) if mask.dim() > 2 else kept.expand(samples, length)
            )
    return None


def word_masks(model: Any, inputs: Any, samples: int) -> dict[int, Tensor]:
    """Return by length `T` which positions `(N, T)` of the texts among the inputs hold words and not padding.

    A layer's rows tell nothing but their number, so that of an encoder's and a decoder's texts of one length each
    position counts that is a word of either; all do if the decoder has no mask. Beside images, other numbers or other
    words, which may give as many rows as the text, all positions count.

    Args:
        model: Takes the inputs; names those that stand in a row.
        inputs: Of the batch.
        samples: `N`.

    Example:
        >>> import torch
        >>> word_masks(None, {"attention_mask": torch.tensor([[1, 1, 0]])}, 1)
        {3: tensor([[ True,  True, False]])}
    """
    named, found = by_name(argument_names(model), inputs), {}
    unmasked = _unmasked_lengths(named) if isinstance(named, Mapping) else set()
    for encoder in (True, False):
        for _, mask in masks_of(named, encoder=encoder):
            length = mask.shape[-1] if mask.dim() else 0
            kept = position_mask(named, (samples, length), encoder=encoder)
            if kept is not None and not unmasked & {length, None}:
                found[length] = kept | found[length] if length in found else kept
    return found


def _is_target(name: Any) -> bool:
    return str(name).startswith(_TARGETS)


def _unmasked_lengths(inputs: Mapping[Any, Any]) -> set[int | None]:
    """Return the numbers of rows that other inputs than masked texts may give; None among them for any number."""
    tensors = {str(name): tensor for name, tensor in inputs.items() if isinstance(tensor, Tensor) and tensor.dim() > 1}
    streams = {name: tensor for name, tensor in tensors.items() if "mask" not in name and "label" not in name}
    targets = [tensor for name, tensor in streams.items() if _is_target(name)]
    sources = {name: tensor for name, tensor in streams.items() if not _is_target(name)}
    embedded = [tensor for name, tensor in sources.items() if name in EMBEDDED]
    numbers = [tensor for name, tensor in sources.items() if tensor.is_floating_point() and name not in EMBEDDED]
    words = [
        tensor.shape[1]
        for name, tensor in sources.items()
        if not tensor.is_floating_point() and tensor.dim() == 2 and not any(part in name for part in BESIDE)
    ]
    silent = {tensor.shape[1] for tensor in targets} if not any(masks_of(inputs)) else set()
    twice = {length for length in words if words.count(length) > 1}
    return silent | twice | ({None} if len(numbers) > (not words and not embedded) else set())


def _kept(mask: Tensor) -> Tensor:
    """Return where a mask is 1 or true, or adds nothing much to a score."""
    if not mask.is_floating_point():
        return mask.bool()
    is_added = bool((mask < 0).any()) or not bool((mask > 0).any())  # of 0 and 1 it would be padding alone
    return mask > BLOCKED if is_added else mask > 0
