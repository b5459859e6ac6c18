"""A data set with its four splits: train, validation, calibration, test."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_choice, check_labels, check_range
from hessprune.lab.data.batches import Batches
from hessprune.lab.data.splits import Source, stratified_split

Split = Literal["train", "validation", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration", "test")
MAX_VALIDATION = 5000

S = TypeVar("S", bound=Source, covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset(ABC, Generic[S]):
    """Labelled samples, split once and for all."""

    name: str
    train: S
    validation: S
    """Held out from the training samples: choices are made on it."""
    calibration: S
    """A part of `train`, never augmented: saliency is measured on it."""
    test: S
    """The published test samples: looked at for the report only."""
    num_classes: int
    fingerprint: str
    """SHA-256 over all four splits, hexadecimal."""
    noun: ClassVar[str] = "sample"
    """The word for one sample."""
    in_channels: ClassVar[int | None] = None
    """Channels that a model must take; None where samples have none."""
    has_lengths: ClassVar[bool] = False
    """True if the second axis of a batch is as long as its longest sample."""
    has_classes: ClassVar[bool] = True
    """True if labels are classes; False for running text."""

    def check_splits(self) -> None:
        """Raise unless all splits hold samples with labels in range.

        Raises:
            DataError: They do not.
        """
        for split in SPLITS:
            part = self.part(split)
            if len(part) == 0:
                raise DataError(
                    f"split {split!r} of {self.name!r} must hold {self.noun}s, got none. Check path and sizes."
                )
            check_labels(part.labels, self.num_classes, f"{self.name} {split}")

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    @abstractmethod
    def reading(self) -> list[Any]:
        """JSON values that decide the numbers in a batch, beside the samples themselves."""

    @abstractmethod
    def batches(
        self, split: Split, batch_size: int, *, augment: Any = False, shuffle: bool | None = None, seed: int = 0
    ) -> Batches[Any]:
        """Return the batches of a split."""

    @abstractmethod
    def example(self, split: Split, batch_size: int) -> Any:
        """Return the inputs of the first batch of a split, at the largest size that a sample may have."""

    def facts(self) -> dict[str, Any]:
        """Return what a report says about the data."""
        sizes = {split: len(self.part(split)) for split in SPLITS}
        classes = {"classes": self.num_classes} if self.has_classes else {}
        shape = {"name": self.name, **classes, "input_shape": list(self.input_shape)}
        return shape | {"noun": self.noun} | sizes

    def part(self, split: Split) -> S:
        """Return a split by name."""
        check_choice("split", split, SPLITS)
        return getattr(self, split)

    def with_calibration(self, seed: int) -> Self:
        """Return the same splits with as many other calibration samples, drawn anew from the training samples.

        The seed of `load_dataset` draws the samples that are there already.
        """
        check_range("seed", seed, low=0, integer=True)
        parts: dict[Any, Any] = {split: self.part(split) for split in SPLITS}
        parts["calibration"] = _calibration(self.train, len(self.calibration), seed)
        return replace(self, **parts, fingerprint=_fingerprint(parts))

    def with_test(self, size: int) -> Self:
        """Return the same splits with the first test samples alone.

        Raises:
            ArgumentError: The size is not positive.
        """
        check_range("test_size", size, low=1, integer=True)
        parts: dict[Any, Any] = {split: self.part(split) for split in SPLITS}
        parts["test"] = self.test.subset(torch.arange(min(size, len(self.test)), device="cpu"))
        return replace(self, **parts, fingerprint=_fingerprint(parts))

    def with_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """Return the same images, normalised otherwise: as pretrained weights expect.

        Raises:
            ArgumentError: The samples are no images.
        """
        del mean, std
        raise ArgumentError(f"`mean` and `std` must be left out for {self.name!r}: its {self.noun}s have no channels.")


def set_aside(
    name: str, train: Any, test: Any, *, seed: int, sizes: tuple[int | None, int], noun: str = "sample"
) -> dict[str, Any]:
    """Take validation and calibration samples from the training samples, stratified by class.

    Args:
        name: Of the data set.
        train: Training samples as published.
        test: Test samples as published.
        seed: Decides which samples are set aside.
        sizes: Validation samples held out, `None` for a tenth of the training samples, at most 5 000; and calibration
            samples of the rest, at most all of them.
        noun: The word for one sample.

    Returns:
        The four splits and their fingerprint, as `Dataset` takes them.

    Raises:
        DataError: There are too few training samples.
    """
    validation_size, calibration_size = sizes
    if len(train) < 2:
        raise DataError(f"{name!r} must hold at least 2 training {noun}s, got {len(train)}.")
    default = min(MAX_VALIDATION, max(1, len(train) // 10))
    size = default if validation_size is None else validation_size
    check_range("validation_size", size, low=1, high=len(train) - 1, integer=True)
    check_range("calibration_size", calibration_size, low=1, integer=True)
    held_out, rest = stratified_split(train.labels, size, seed)
    kept = train.subset(rest)
    parts = {
        "train": kept,
        "validation": train.subset(held_out),
        "calibration": _calibration(kept, calibration_size, seed),
        "test": test,
    }
    return parts | {"fingerprint": _fingerprint(parts)}


def _calibration(train: Any, size: int, seed: int) -> Any:
    drawn, _ = stratified_split(train.labels, min(size, len(train)), seed + 1)  # not the draw of the validation samples
    return train.subset(drawn)


def _fingerprint(parts: Mapping[Any, Source]) -> str:
    """Return a SHA-256 over the splits, in order."""
    return hashlib.sha256(b"".join(parts[split].digest() for split in SPLITS)).hexdigest()
