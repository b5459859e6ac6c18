"""Images in memory: one uint8 tensor and its labels."""

import hashlib
import os
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.formatting import bytes_text
from hessprune.lab.data.augment import Augment, crop_flip

MOST_CLASSES = 2**20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageArrays:
    """Images of one size, all in memory.

    Example:
        >>> arrays = ImageArrays(images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([0, 1, 2]))
        >>> len(arrays.subset(torch.tensor([2, 0])))
        2
    """

    images: Tensor
    """uint8 `(N, C, H, W)`."""
    labels: Tensor
    """int64 `(N,)`."""
    prefetches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"`images` must be a uint8 tensor (N, C, H, W), got {found}. Scale to 0…255 and permute.")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"`labels` must be an int64 tensor ({len(self.images)},), one for each image, got {found}.")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: Tensor) -> "ImageArrays":
        """Return the images at `indices`, in that order."""
        return ImageArrays(images=self.images[indices], labels=self.labels[indices])

    def read(self, indices: Tensor, augment: Augment | None, uniform: Tensor | None) -> Tensor:
        """Return uint8 images `(B, C, H, W)`, augmented by the draws `uniform` `(B, 5)` if asked."""
        images = self.images[indices]
        return images if augment is None or uniform is None else crop_flip(images, augment, uniform)

    def digest(self) -> bytes:
        """Return the SHA-256 of images and labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.digest()


def check_memory(size_bytes: int, path: str) -> None:
    """Raise where images would take more memory than the machine has: a small file can claim any size.

    Raises:
        DataError: They would.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size_bytes > memory:
        raise DataError(
            f"images of {path!r} must fit the memory of {bytes_text(memory)}, got {bytes_text(size_bytes)}. Give "
            "fewer or smaller ones, or image files with source 'image-folder'."
        )


def count_classes(labels: Tensor, path: str) -> int:
    """Return the number of classes of labels `(N,)`, of which the largest is the last.

    Raises:
        DataError: There are more than any data set has: a damaged label would make a model of any size.

    Example:
        >>> count_classes(torch.tensor([0, 2, 1]), "digits.npz")
        3
    """
    number = int(labels.max()) + 1 if len(labels) else 0
    if number > MOST_CLASSES:
        raise DataError(
            f"labels of {path!r} must be below {MOST_CLASSES:,}, got {number - 1:,}. Renumber the labels from 0."
        )
    return max(number, 1)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images `(N, C, H, W)`, on the scale 0…1.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64, device="cpu") / 255
    means, deviations = [], []
    for channel in images.unbind(1):
        weight = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = weight @ levels
        means.append(float(mean))
        deviations.append(float((weight @ (levels - mean) ** 2).sqrt()) or 1.0)  # a constant channel stays as it is
    return tuple(means), tuple(deviations)
