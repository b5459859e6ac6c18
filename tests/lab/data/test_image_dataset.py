"""Four splits that do not leak, a fingerprint that tells them apart, and normalisation."""

import re

import pytest
import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.lab.data.image_dataset import split_dataset
from hessprune.lab.data.splits import OfficialSplits
from tests.lab.data.samples import random_arrays


def official(num_train: int = 100, num_test: int = 20, **options) -> OfficialSplits:
    parts = {"train": random_arrays(num_train), "test": random_arrays(num_test, seed=9)}
    return OfficialSplits(**{"name": "noise", "num_classes": 3, **parts, **options})


def split(source: OfficialSplits | None = None, **options):
    return split_dataset(source or official(), **{"seed": 0, "validation_size": 30, "calibration_size": 12, **options})


def rows(part) -> set[bytes]:
    return {image.numpy().tobytes() for image in part.images}


def test_splits_are_disjoint_and_calibration_is_a_part_of_train():
    data = split()
    sizes = [len(part) for part in (data.train, data.validation, data.calibration, data.test)]
    assert sizes == [70, 30, 12, 20]
    assert not rows(data.train) & rows(data.validation)
    assert rows(data.calibration) < rows(data.train)
    assert torch.equal(data.test.images, random_arrays(20, seed=9).images)
    assert data.input_shape == (3, 8, 8)
    assert data.calibration.labels.bincount().tolist() == [4, 4, 4]


def test_default_validation_is_a_tenth_and_calibration_at_most_everything():
    data = split(validation_size=None, calibration_size=512)
    assert (len(data.validation), len(data.calibration)) == (10, 90)


def test_fingerprint_depends_on_data_and_seed_alone():
    assert split().fingerprint == split().fingerprint
    changed = official(train=random_arrays(100, seed=1))
    others = {split(seed=1).fingerprint, split(changed).fingerprint, split(validation_size=31).fingerprint}
    assert len(others | {split().fingerprint}) == 4
    assert re.fullmatch("[0-9a-f]{64}", split().fingerprint)


def test_calibration_is_drawn_anew_from_the_same_training_images():
    data = split()
    again, other = data.with_calibration(0), data.with_calibration(7)
    assert again.fingerprint == data.fingerprint
    assert other.fingerprint != data.fingerprint
    assert len(other.calibration) == 12
    assert rows(other.calibration) < rows(data.train)
    assert rows(other.calibration) != rows(data.calibration)
    assert other.train is data.train
    with pytest.raises(ArgumentError, match="`seed` must be an integer of at least 0, got -1"):
        data.with_calibration(-1)


def test_statistics_do_not_depend_on_the_seed():
    assert split().mean == split(seed=5).mean
    assert len(split().std) == 3


def test_train_batches_shuffle_and_drop_the_rest():
    data = split()
    train, calibration = data.batches("train", 32, augment=True), data.batches("calibration", 5)
    assert (train.shuffle, train.augment, len(train)) == (True, "crop-flip", 2)
    assert (calibration.shuffle, calibration.augment, len(calibration)) == (False, None, 3)
    assert len(data.batches("train", 128)) == 1
    assert data.batches("train", 8, augment="crop", shuffle=False).augment == "crop"


def test_normalisation_can_be_replaced():
    data = split().with_normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    images, _ = next(iter(data.batches("test", 20)))
    torch.testing.assert_close(images, data.test.images / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_size": 0}, "`validation_size` must be an integer from 1 to 99"),
        ({"validation_size": 100}, "`validation_size` must be an integer from 1 to 99"),
        ({"calibration_size": 0}, "`calibration_size` must be an integer"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        split(**options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (official(num_train=1), "must hold at least 2 training images, got 1"),
        (official(num_test=0), "split 'test' of 'noise' must hold images, got none"),
        (
            official(test=random_arrays(5, shape=(3, 4, 4))),
            "must have images of one shape, got (3, 4, 4) and (3, 8, 8)",
        ),
        (official(num_classes=2), "labels in `noise train` must be in [0, 2)"),
    ],
)
def test_unusable_data_are_refused(source, message):
    with pytest.raises(DataError, match=re.escape(message)):
        split(source)


def test_wrong_split_and_normalisation_are_refused():
    with pytest.raises(ArgumentError, match="Did you mean 'validation'"):
        split().batches("valid", 4)
    with pytest.raises(ArgumentError, match="`std` must be positive"):
        split().with_normalisation((0.0, 0.0, 0.0), (1.0, 1.0, -1.0))


def test_images_in_memory_keep_their_size():
    with pytest.raises(ArgumentError, match="`size` must be left out for 'noise'"):
        split().with_image_size(32)
