"""Batches that can be read again and again, from any point of any epoch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.formatting import shown
from hessprune.lab.data.augment import AUGMENTS, NUM_DRAWS, Augment
from hessprune.lab.data.splits import ImageSource, Source

S = TypeVar("S", bound=Source)


@dataclass(eq=False)
class Batches(ABC, Generic[S]):
    """A re-iterable of batches of a source.

    The order of an epoch is a function of `(seed, epoch)` alone: not of what was read before, not of torch's random
    state. Iterating twice gives the same batches until `set_epoch`.
    """

    arrays: S
    _: KW_ONLY
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    epoch: int = field(default=0, init=False)
    noun: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        check_range("batch_size", self.batch_size, low=1, integer=True)
        check_range("seed", self.seed, low=0, integer=True)
        if len(self) == 0:
            at_least = self.batch_size if self.drop_last else 1
            raise DataError(
                f"`arrays` must hold at least {at_least} {self.noun}s for one batch, got {len(self.arrays)}."
            )

    def __len__(self) -> int:
        """Return the number of batches."""
        whole, rest = divmod(len(self.arrays), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def num_samples(self) -> int:
        """The samples of one epoch."""
        return min(len(self) * self.batch_size, len(self.arrays))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that plain iteration reads."""
        check_range("epoch", epoch, low=0, integer=True)
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """Read the current epoch from its start."""
        return self.iterate(self.epoch)

    def iterate(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        """Read an epoch from batch `start_step` on, without reading what lies before."""
        check_range("epoch", epoch, low=0, integer=True)
        check_range("start_step", start_step, low=0, high=len(self), integer=True)
        yield from self._read(self._chunks(epoch)[start_step : len(self)], epoch)

    @abstractmethod
    def _read(self, chunks: Sequence[Tensor], epoch: int) -> Iterator[Any]:
        """Yield the batch of each chunk of indices."""

    def _chunks(self, epoch: int) -> Sequence[Tensor]:
        """Return the indices of each batch of an epoch."""
        return self._order(epoch).split(self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.arrays), device="cpu")
        return torch.from_numpy(np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.arrays)))


@dataclass(eq=False)
class ImageBatches(Batches[ImageSource]):
    """A re-iterable of `(images, labels)`: normalised float32 `(B, C, H, W)` and int64 `(B,)`.

    The order and the augmentation of an epoch are functions of `(seed, epoch)` alone: not of the batch size, not of
    what was read before, not of torch's random state. Iterating twice gives the same batches until `set_epoch`.

    Args:
        arrays: `ImageArrays` or `ImageFiles`.
        batch_size: Images in a batch; the last one may be smaller.
        mean: Of each channel, on the scale 0…1.
        std: Of each channel, on the scale 0…1.
        shuffle: Draw a new order in each epoch.
        augment: `None`, `"crop"` or `"crop-flip"`.
        seed: Decides order and augmentation.
        drop_last: Leave out a smaller last batch.

    Raises:
        DataError: `arrays` is empty, or smaller than a batch with `drop_last`.
        ArgumentError: Another argument is out of range.

    Example:
        >>> from hessprune.lab.data.arrays import ImageArrays
        >>> white = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
        >>> arrays = ImageArrays(images=white, labels=torch.tensor([0, 1, 0]))
        >>> batches = ImageBatches(arrays, batch_size=2, mean=(0.5,), std=(0.5,))
        >>> [(tuple(x.shape), float(x.mean())) for x, y in batches]
        [((2, 1, 2, 2), 1.0), ((1, 1, 2, 2), 1.0)]
    """

    _: KW_ONLY
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None
    noun: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        Batches.__post_init__(self)
        if self.augment is not None:
            check_choice("augment", self.augment, AUGMENTS)
        check_normalisation(self.mean, self.std, channels=self.arrays.input_shape[0])

    def _read(self, chunks: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        uniform = self._draws(epoch)
        pixels = torch.tensor([self.mean, self.std], dtype=torch.float32, device="cpu")[..., None, None] * 255
        for indices, images in zip(chunks, self._read_all(chunks, uniform), strict=True):
            yield images.float().sub_(pixels[0]).div_(pixels[1]), self.arrays.labels[indices]

    def _draws(self, epoch: int) -> Tensor | None:
        """Return the uniform numbers `(N, 5)` of every sample in this epoch."""
        if self.augment is None:
            return None
        rng = np.random.default_rng([self.seed, epoch, 1])
        return torch.from_numpy(rng.random((len(self.arrays), NUM_DRAWS), dtype=np.float32))

    def _read_all(self, chunks: Sequence[Tensor], uniform: Tensor | None) -> Iterator[Tensor]:
        def read(indices: Tensor) -> Tensor:
            return self.arrays.read(indices, self.augment, None if uniform is None else uniform[indices])

        return one_ahead(read, chunks) if self.arrays.prefetches else map(read, chunks)


def one_ahead(read: Callable[[Tensor], Tensor], chunks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield `read(chunk)` of every chunk, reading the next one in a thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        pending = None
        for chunk in chunks:
            coming = pool.submit(read, chunk)
            if pending is not None:
                yield pending.result()
            pending = coming
        if pending is not None:
            yield pending.result()


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...], *, channels: int) -> None:
    """Raise unless both hold one number for each channel, and deviations are positive.

    Raises:
        ArgumentError: They do not.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels or not all(np.isfinite(value) for value in values):
            raise ArgumentError(
                f"`{name}` must hold {channels} finite numbers, one for each channel, got {shown(values)}."
            )
    if min(std) <= 0:
        raise ArgumentError(f"`std` must be positive, got {shown(std)}.")
