"""Sources of samples, and the seeded split of the training samples."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from hessprune.lab.data.augment import Augment


class Source(Protocol):
    """Labelled samples that can be counted and selected."""

    @property
    def labels(self) -> Tensor:
        """int64 `(N,)`."""
        ...

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Self:
        """Return the samples at `indices`, in that order."""
        ...

    def digest(self) -> bytes:
        """Return a SHA-256 that tells this selection of samples from any other."""
        ...


class ImageSource(Source, Protocol):
    """Labelled images that can be read by index: in memory or as files."""

    prefetches: ClassVar[bool]
    """True if reading is so slow that it is done one batch ahead."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        ...

    def read(self, indices: Tensor, augment: Augment | None, uniform: Tensor | None) -> Tensor:
        """Return uint8 images `(B, C, H, W)`, augmented by the draws `uniform` `(B, 5)` if asked."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OfficialSplits:
    """The splits as published, before validation and calibration are set aside."""

    name: str
    train: ImageSource
    test: ImageSource
    num_classes: int
    mean: tuple[float, ...] | None = None
    """`None`: the statistics of the training images."""
    std: tuple[float, ...] | None = None
    augmentation: Augment = "crop-flip"


def stratified_split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `size` indices with every class in proportion, ± 1, and return them and the rest, each in random order.

    Args:
        labels: int64 `(N,)`.
        size: How many to draw, at most `N`.
        seed: Decides which.

    Returns:
        Drawn indices `(size,)` and remaining indices `(N − size,)`, int64.

    Example:
        >>> drawn, rest = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), size=3, seed=0)
        >>> sorted(torch.tensor([0, 0, 0, 0, 1, 1])[drawn].tolist()), len(rest)
        ([0, 0, 1], 3)
    """
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    by_class = torch.argsort(labels[shuffled], stable=True)
    evenly = torch.arange(size, device="cpu") * len(labels) // max(size, 1)
    places = by_class[evenly]  # so every class is hit
    is_drawn = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
    is_drawn[places] = True
    return shuffled[is_drawn], shuffled[~is_drawn]
