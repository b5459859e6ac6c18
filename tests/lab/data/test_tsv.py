"""GLUE's files: which of them is which split, and what is refused."""

import shutil

import pytest

from hessprune.errors import ArgumentError, DataError
from hessprune.lab.data import TextReading, load_dataset
from tests.huggingface import write_sentences, write_tokenizer


@pytest.fixture
def reading(tmp_path):
    return TextReading(tokenizer=write_tokenizer(tmp_path / "model"), max_length=12)


@pytest.fixture
def folder(tmp_path):
    return write_sentences(tmp_path / "sst2")


def load(folder, reading, **options):
    return load_dataset("tsv", root=folder, text=reading, **{"validation_size": 10, "calibration_size": 8} | options)


def test_the_splits_do_not_leak(folder, reading):
    data = load(folder, reading)
    assert [len(data.part(split)) for split in ("train", "validation", "calibration", "test")] == [30, 10, 8, 20]
    assert (data.name, data.num_classes, data.max_length) == ("sst2", 2, 12)
    assert data.fingerprint == load(folder, reading).fingerprint
    assert data.with_calibration(3).fingerprint != data.fingerprint


def test_the_fingerprint_depends_on_the_tokenizer_as_it_cuts(folder, reading, tmp_path):
    shorter = TextReading(tokenizer=tmp_path / "model", max_length=4)
    assert load(folder, shorter).fingerprint != load(folder, reading).fingerprint


def test_a_test_file_without_labels_is_replaced_by_the_other(folder, reading):
    shutil.copy(folder / "train.tsv", folder / "dev.tsv")
    (folder / "test.tsv").write_text("index\tsentence\n0\ta film\n")
    assert len(load(folder, reading).test) == 40
    (folder / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"must hold train.tsv, and test.tsv or dev.tsv with labels"):
        load(folder, reading)


def test_what_is_missing_is_named(folder, reading):
    with pytest.raises(ArgumentError, match="`tokenizer` must be given for source 'tsv', unless the"):
        load(folder, None)
    (folder / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"train.tsv' must exist"):
        load(folder, reading)
