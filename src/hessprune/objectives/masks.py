"""Positions that do not count: padding that a mask names, and positions whose label is ignored."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.trees import tensors_in

KEPT = ("decoder_attention_mask", "attention_mask")
"""Names of inputs that are 1 where a position counts."""
TOKENS = ("decoder_input_ids", "input_ids")
"""Names of inputs that are numbers of words."""
PADDED = ("src_key_padding_mask", "key_padding_mask", "padding_mask")
"""Names of inputs that are true where a position is padding."""


def counted_positions(inputs: Any, targets: Any, positions: Sequence[int], *, ignore_index: int = -100) -> Tensor:
    """Return the positions of an output that count, `(N, *)` bool.

    Args:
        inputs: Of the batch; a mask `(N, T)` among keyword arguments excludes padding from outputs `(N, T, …)`.
        targets: Integer labels of the positions exclude those with the label `ignore_index`; others are not read.
        positions: Shape of the positions, samples first.
        ignore_index: The label.

    Example:
        >>> import torch
        >>> counted_positions({"attention_mask": torch.tensor([[1, 1, 0]])}, None, (1, 3))
        tensor([[ True,  True, False]])
    """
    device = targets.device if isinstance(targets, Tensor) else None
    counted = torch.ones(tuple(positions), dtype=torch.bool, device=device)
    mask = _mask_of(inputs, positions)
    if mask is not None:
        counted = counted.to(mask.device) & _spread(mask, positions)
    if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dtype != torch.bool:
        labels = targets.squeeze(1) if len(positions) == 1 and targets.dim() == 2 and targets.shape[1] == 1 else targets
        if tuple(labels.shape) == tuple(positions):
            counted = counted & (labels != ignore_index).to(counted.device)
    return counted


def tokens_of(inputs: Any) -> Tensor | None:
    """Return the tokens `(N, T)` that a model reads, of a pair of encoder and decoder the decoder's; None without."""
    first = next(tensors_in(inputs), None)
    named = [inputs[name] for name in TOKENS if name in inputs] if isinstance(inputs, Mapping) else []
    tokens = named[0] if named else first
    is_text = isinstance(tokens, Tensor) and tokens.dim() == 2 and not tokens.is_floating_point()
    return tokens if is_text else None


def sampled_positions(length: int, count: int | None) -> Tensor:
    """Return `count` positions of a text, one at random in each of so many equal parts; all if there are no more.

    The same positions come for the same length, so that two models are compared at the same ones.

    Example:
        >>> sampled_positions(3, 4), len(sampled_positions(100, 4))
        (tensor([0, 1, 2]), 4)
    """
    if count is None or count >= length:
        return torch.arange(length)
    within = torch.rand(count, generator=torch.Generator().manual_seed(length), dtype=torch.float64)
    return ((torch.arange(count) + within) * (length / count)).long().clamp(max=length - 1)


def _mask_of(inputs: Any, positions: Sequence[int]) -> Tensor | None:
    """Return the mask over the first positions behind the samples."""
    if not isinstance(inputs, Mapping) or len(positions) < 2:
        return None
    for name in (*KEPT, *PADDED):
        mask = inputs.get(name)
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(positions[:2]):
            return mask.bool() if name in KEPT else ~mask.bool()
    return None


def _spread(mask: Tensor, positions: Sequence[int]) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (len(positions) - 2)).expand(tuple(positions))
