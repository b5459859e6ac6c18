"""The usual augmentation of small images, vectorised: each sample gets its own shift and its own flip."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augment = Literal["crop", "crop-flip"]
"""`"crop"` shifts (small images) or zooms (photographs) at random, `"crop-flip"` also mirrors left and right."""

AUGMENTS: tuple[Augment, ...] = ("crop", "crop-flip")
NUM_DRAWS = 5
"""Uniform numbers that one sample may use."""


def crop_flip(images: Tensor, augment: Augment, uniform: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its height, zeros moving in, and mirror half of them.

    Args:
        images: uint8 `(N, C, H, W)`.
        augment: Mirrors only for `"crop-flip"`.
        uniform: `(N, 5)` in [0, 1): vertical shift, horizontal shift, flip; the rest is not used.

    Returns:
        uint8 `(N, C, H, W)`, a new tensor.

    Example:
        >>> image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> crop_flip(image, "crop-flip", torch.tensor([[0.5, 0.9, 0.2, 0, 0]])).tolist()  # one pixel left, mirrored
        [[[[0, 1], [0, 3]]]]
    """
    height, width = images.shape[-2:]
    pad = max(1, height // 8)
    rows, columns = (uniform[:, :2] * (2 * pad + 1)).long().unbind(1)
    windows = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W)
    cropped = windows[torch.arange(len(images), device="cpu"), :, rows, columns]
    if augment == "crop":
        return cropped
    mirrored = uniform[:, 2] < 0.5
    cropped[mirrored] = cropped[mirrored].flip(3)
    return cropped
