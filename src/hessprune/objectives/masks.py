"""Positions that do not count: padding that a mask names, and positions whose label is ignored."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

KEPT = ("decoder_attention_mask", "attention_mask")
"""Names of inputs that are 1 where a position counts."""
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
