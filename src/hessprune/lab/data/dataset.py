"""A data set with its four splits: train, validation, calibration, test."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_choice, check_labels, check_range
from hessprune.lab.data.arrays import ImageArrays, channel_statistics
from hessprune.lab.data.augment import Augment
from hessprune.lab.data.batches import ImageBatches, check_normalisation
from hessprune.lab.data.image_folder import ImageFiles
from hessprune.lab.data.splits import ImageSource, OfficialSplits, stratified_split

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")
MAX_VALIDATION = 5000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Labelled images, split once and for all."""

    name: str
    train: ImageSource
    validation: ImageSource
    """Held out from the training images: choices are made on it."""
    calibration: ImageSource
    """A part of `train`, never augmented: saliency is measured on it."""
    test: ImageSource
    """The published test images: looked at for the report only."""
    num_classes: int
    mean: tuple[float, ...]
    """Of each channel, on the scale 0…1."""
    std: tuple[float, ...]
    fingerprint: str
    """SHA-256 over all four splits, hexadecimal."""
    augmentation: Augment = "crop-flip"
    """What `augment=True` means for these images; digits must not be mirrored."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            part = self.part(split)
            if len(part) == 0:
                raise DataError(f"split {split!r} of {self.name!r} must hold images, got none. Check path and sizes.")
            if part.input_shape != self.input_shape:
                found = f"{part.input_shape} and {self.input_shape}"
                raise DataError(f"all splits of {self.name!r} must have images of one shape, got {found}.")
            check_labels(part.labels, self.num_classes, f"{self.name} {split}")
        check_normalisation(self.mean, self.std, channels=self.input_shape[0])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        return self.train.input_shape

    def part(self, split: Split) -> ImageSource:
        """Return a split by name."""
        check_choice("split", split, SPLITS)
        return getattr(self, split)

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

    def with_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Dataset":
        """Return the same images, normalised otherwise: as pretrained weights expect."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def with_calibration(self, seed: int) -> "Dataset":
        """Return the same splits with as many other calibration images, drawn anew from the training images.

        The seed of `load_dataset` draws the images that are there already.
        """
        check_range("seed", seed, low=0, integer=True)
        parts = {split: self.part(split) for split in SPLITS} | {
            "calibration": _calibration(self.train, len(self.calibration), seed)
        }
        return replace(self, **parts, fingerprint=_fingerprint(parts))

    def with_image_size(self, size: int) -> "Dataset":
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
) -> Dataset:
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
    if len(official.train) < 2:
        raise DataError(f"{official.name!r} must hold at least 2 training images, got {len(official.train)}.")
    default = min(MAX_VALIDATION, max(1, len(official.train) // 10))
    size = default if validation_size is None else validation_size
    check_range("validation_size", size, low=1, high=len(official.train) - 1, integer=True)
    check_range("calibration_size", calibration_size, low=1, integer=True)
    held_out, rest = stratified_split(official.train.labels, size, seed)
    train = official.train.subset(rest)
    parts = {
        "train": train,
        "validation": official.train.subset(held_out),
        "calibration": _calibration(train, calibration_size, seed),
        "test": official.test,
    }
    mean, std = _normalisation(official)
    return Dataset(
        name=official.name,
        **parts,
        num_classes=official.num_classes,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(parts),
        augmentation=official.augmentation,
    )


def _calibration(train: ImageSource, size: int, seed: int) -> ImageSource:
    drawn, _ = stratified_split(train.labels, min(size, len(train)), seed + 1)  # not the draw of the validation images
    return train.subset(drawn)


def _fingerprint(parts: Mapping[str, ImageSource]) -> str:
    """Return a SHA-256 over the splits, in order."""
    return hashlib.sha256(b"".join(parts[split].digest() for split in SPLITS)).hexdigest()


def _normalisation(official: OfficialSplits) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the source's own statistics, or those of the training images, rounded to four digits."""
    if official.mean is not None and official.std is not None:
        return official.mean, official.std
    if not isinstance(official.train, ImageArrays):
        raise DataError(f"{official.name!r} must state `mean` and `std`: its images are not in memory.")
    mean, std = channel_statistics(official.train.images)
    return tuple(round(value, 4) for value in mean), tuple(round(value, 4) for value in std)
