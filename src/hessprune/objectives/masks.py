"""Positions that do not count: padding that a mask names, and positions whose label is ignored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.texts import position_mask


def counted_positions(
    inputs: Any, targets: Any, positions: Sequence[int], *, ignore_index: int = -100, encoder: bool = False
) -> Tensor:
    """Return the positions of an output that count, `(N, *)` bool.

    Args:
        inputs: Of the batch; a mask among keyword arguments excludes padding from outputs `(N, T, …)`. Beside a
            decoder, `attention_mask` speaks of the encoder alone.
        targets: Integer labels of the positions exclude those with the label `ignore_index`; others are not read.
        positions: Shape of the positions, samples first.
        ignore_index: The label.
        encoder: True for outputs of the encoder, beside those of a decoder.

    Example:
        >>> import torch
        >>> counted_positions({"attention_mask": torch.tensor([[1, 1, 0]])}, None, (1, 3))
        tensor([[ True,  True, False]])
    """
    device = targets.device if isinstance(targets, Tensor) else torch.device("cpu")
    counted = torch.ones(tuple(positions), dtype=torch.bool, device=device)
    mask = position_mask(inputs, positions, encoder=encoder) if len(positions) > 1 else None
    if mask is not None:
        counted = counted.to(mask.device) & _spread(mask, positions)
    if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dtype != torch.bool:
        labels = targets.squeeze(1) if len(positions) == 1 and targets.dim() == 2 and targets.shape[1] == 1 else targets
        if tuple(labels.shape) == tuple(positions):
            counted = counted & (labels != ignore_index).to(counted.device)
    return counted


def sampled_positions(length: int, count: int | None) -> Tensor:
    """Return `count` positions of a text, one at random in each of so many equal parts; all if there are no more.

    The same positions come for the same length, so that two models are compared at the same ones.

    Example:
        >>> sampled_positions(3, 4), len(sampled_positions(100, 4))
        (tensor([0, 1, 2]), 4)
    """
    if count is None or count >= length:
        return torch.arange(length, device="cpu")
    within = torch.rand(count, generator=torch.Generator().manual_seed(length), dtype=torch.float64, device="cpu")
    return ((torch.arange(count, device="cpu") + within) * (length / count)).long().clamp(max=length - 1)


def drawn_positions(inputs: Any, positions: Sequence[int], count: int | None, *, encoder: bool = False) -> Tensor:
    """Return the positions of texts as `sampled_positions` does, but of padded ones among their words, by rank.

    So a text has the same words drawn however it is padded; where it has fewer than `count`, padding fills the row.

    Args:
        inputs: Of the batch, as for `counted_positions`.
        positions: `(N, T)`.
        count: Positions of a text that are drawn.
        encoder: True for outputs of the encoder.

    Returns:
        `(m,)` where all texts are of one length, else `(N, m)`, on the CPU.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
        >>> drawn_positions({"attention_mask": mask}, (2, 4), 3).shape, drawn_positions(None, (2, 4), 3).shape
        (torch.Size([2, 3]), torch.Size([3]))
    """
    drawn = sampled_positions(positions[1], count)
    words = position_mask(inputs, positions, encoder=encoder)
    if words is None or bool(words.all()):
        return drawn
    return torch.stack([_drawn_of(row, len(drawn)) for row in words.cpu()])


def at_positions(tensor: Tensor, drawn: Tensor) -> Tensor:
    """Return a tensor `(N, T, …)` at positions `(m,)`, or at those of each text, `(N, m)`."""
    drawn = drawn.to(tensor.device)
    if drawn.dim() == 1:
        return tensor.index_select(1, drawn)
    return tensor[torch.arange(len(drawn), device=tensor.device)[:, None], drawn]


def _drawn_of(words: Tensor, count: int) -> Tensor:
    """Return the positions of one text, `(count,)`: its words in front."""
    kept, padding = (~words).sort(stable=True).indices.split([int(words.sum()), int((~words).sum())])
    return torch.cat([kept[sampled_positions(len(kept), count)], padding[: max(0, count - len(kept))]])


def _spread(mask: Tensor, positions: Sequence[int]) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (len(positions) - 2)).expand(tuple(positions))
