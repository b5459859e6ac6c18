"""Labelled images, normalised and augmented as batches are read."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_range
from hessprune.lab.data.arrays import ImageArrays, channel_statistics
from hessprune.lab.data.augment import Augment
from hessprune.lab.data.batches import ImageBatches, check_normalisation
from hessprune.lab.data.dataset import SPLITS, Dataset, Split, set_aside
from hessprune.lab.data.image_folder import ImageFiles
from hessprune.lab.data.splits import ImageSource, OfficialSplits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageDataset(Dataset[ImageSource]):
    """Labelled images, split once and for all."""

    mean: tuple[float, ...]
    """Of each channel, on the scale 0…1."""
    std: tuple[float, ...]
    augmentation: Augment = "crop-flip"
    """Meaning of `augment=True` for these images; digits must not be mirrored."""
    noun: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        self.check_splits()
        for split in SPLITS:
            part = self.part(split)
            if part.input_shape != self.input_shape:
                found = f"{part.input_shape} and {self.input_shape}"
                raise DataError(f"all splits of {self.name!r} must have images of one shape, got {found}.")
        check_normalisation(self.mean, self.std, channels=self.in_channels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        return self.train.input_shape

    @property
    def in_channels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Channels of the images."""
        return self.input_shape[0]

    @property
    def reading(self) -> list[Any]:
        """The normalisation."""
        return [self.mean, self.std]

    def facts(self) -> dict[str, Any]:
        """Return what a report says about the data."""
        return Dataset.facts(self) | {"mean": list(self.mean), "std": list(self.std)}

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        augment: bool | Augment = False,
        shuffle: bool | None = None,
        seed: int = 0,
    ) -> ImageBatches:
        """Return the batches of a split.

        Args:
            split: `"train"`, `"validation"`, `"calibration"` or `"test"`.
            batch_size: Images in a batch. When shuffling, a smaller last batch is left out.
            augment: `True` for the data set's own augmentation, or one by name.
            shuffle: Draw a new order in each epoch; by default for `"train"` only.
            seed: Decides order and augmentation.

        Returns:
            A re-iterable of normalised `(images, labels)`.

        Raises:
            ArgumentError: The split or another argument is not valid.
        """
        arrays = self.part(split)
        shuffles = split == "train" if shuffle is None else shuffle
        chosen: Augment | None = self.augmentation if augment is True else augment or None
        return ImageBatches(
            arrays,
            batch_size=batch_size,
            mean=self.mean,
            std=self.std,
            shuffle=shuffles,
            augment=chosen,
            seed=seed,
            drop_last=shuffles and len(arrays) > batch_size,
        )

    def example(self, split: Split, batch_size: int) -> Tensor:
        """Return the first images of a split, `(batch_size, C, H, W)`."""
        return next(iter(self.batches(split, batch_size, shuffle=False)))[0]

    def with_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "ImageDataset":
        """Return the same images, normalised otherwise: as pretrained weights expect."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def with_image_size(self, size: int) -> "ImageDataset":
        """Return the same image files, read as `(3, size, size)`.

        Raises:
            ArgumentError: The images are in memory, at a size of their own.
        """
        check_range("size", size, low=1, integer=True)
        parts = {}
        for split in SPLITS:
            part = self.part(split)
            if not isinstance(part, ImageFiles):
                raise ArgumentError(f"`size` must be left out for {self.name!r}: its images are {self.input_shape}.")
            parts[split] = replace(part, size=size)
        return replace(self, **parts)


def split_dataset(
    official: OfficialSplits, *, seed: int, validation_size: int | None, calibration_size: int
) -> ImageDataset:
    """Set validation and calibration images aside, stratified by class, and close the data set with its fingerprint.

    Args:
        official: Training and test images as published.
        seed: Decides which images are set aside.
        validation_size: Images held out; `None` for a tenth of the training images, at most 5 000.
        calibration_size: Images of the rest to measure saliency on; at most all of them.

    Returns:
        The data set; `mean` and `std` do not depend on the seed.

    Raises:
        DataError: A split is empty, or labels are out of range.
    """
    sizes = (validation_size, calibration_size)
    parts = set_aside(official.name, official.train, official.test, seed=seed, sizes=sizes, noun="image")
    mean, std = _normalisation(official)
    return ImageDataset(
        name=official.name,
        **parts,
        num_classes=official.num_classes,
        mean=mean,
        std=std,
        augmentation=official.augmentation,
    )


def _normalisation(official: OfficialSplits) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the source's own statistics, or those of the training images, rounded to four digits."""
    if official.mean is not None and official.std is not None:
        return official.mean, official.std
    if not isinstance(official.train, ImageArrays):
        raise DataError(f"{official.name!r} must state `mean` and `std`: its images are not in memory.")
    mean, std = channel_statistics(official.train.images)
    return tuple(round(value, 4) for value in mean), tuple(round(value, 4) for value in std)
