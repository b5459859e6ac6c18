"""The front door: the digits, and what it says about wrong names and places."""

import pytest
import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.lab.data import available_sources, load_dataset


def test_digits_are_complete_and_their_test_split_is_fixed():
    data, other = load_dataset("digits"), load_dataset("digits", seed=1)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert torch.equal(data.test.images, other.test.images)
    assert data.fingerprint != other.fingerprint
    assert int(data.train.images.max()) == 255
    assert data.augmentation == "crop"
    assert data.num_classes == 10
    assert data.test.labels.bincount().min() >= 43


def test_digits_batches_have_zero_mean_and_unit_deviation():
    images = torch.cat([x for x, _ in load_dataset("digits").batches("train", 64)])
    assert float(images.mean()) == pytest.approx(0, abs=0.01)
    assert float(images.std()) == pytest.approx(1, abs=0.01)


def test_sources_are_listed():
    assert available_sources() == (
        "digits",
        "digits-16",
        "grammar",
        "cifar10",
        "cifar100",
        "parquet",
        "npz",
        "image-folder",
        "tsv",
        "wikitext",
    )


def test_unknown_source():
    with pytest.raises(ArgumentError, match=r"got 'cifar-10'\. Did you mean 'cifar10'\?"):
        load_dataset("cifar-10")


def test_root_is_needed():
    with pytest.raises(ArgumentError, match="`root` must be given for source 'npz'"):
        load_dataset("npz")


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "parquet", "npz", "image-folder"])
def test_missing_root(source, tmp_path):
    with pytest.raises(DataError, match=r"`root` must be an existing folder or file, got .*absent"):
        load_dataset(source, root=tmp_path / "absent")


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "parquet", "npz", "image-folder"])
def test_empty_root(source, tmp_path):
    with pytest.raises(DataError, match=r"must .*(hold|be|exist)"):
        load_dataset(source, root=tmp_path)


def test_negative_seed():
    with pytest.raises(ArgumentError, match="`seed` must be an integer"):
        load_dataset("digits", seed=-1)
