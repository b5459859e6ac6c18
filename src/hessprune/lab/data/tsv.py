"""Sentences with labels in the tab-separated files of GLUE's SST-2: `train.tsv`, `dev.tsv`, `test.tsv`."""

from pathlib import Path

import torch

from hessprune.errors import DataError
from hessprune.lab.data.arrays import count_classes
from hessprune.lab.data.dataset import set_aside
from hessprune.lab.data.glue import is_labelled, read_sentences
from hessprune.lab.data.sentences import TextReading, load_tokenizer, tokenise
from hessprune.lab.data.text_dataset import TextDataset

TEST_FILES = ("test.tsv", "dev.tsv")


def read_tsv(
    root: Path, reading: TextReading, *, seed: int, validation_size: int | None, calibration_size: int
) -> TextDataset:
    """Read and tokenise a folder of sentences, and set validation and calibration sentences aside.

    The test split is `test.tsv`, or `dev.tsv` where that has no labels, as on GLUE's server. Validation sentences are
    taken from `train.tsv`.

    Args:
        root: The folder.
        reading: Tokenizer and padding.
        seed: Decides which training sentences are set aside.
        validation_size: Sentences held out; `None` for a tenth of the training sentences, at most 5 000.
        calibration_size: Sentences of the rest to measure saliency on; at most all of them.

    Raises:
        DataError: A file is missing, a line does not fit, or labels are out of range.
    """
    test_file = next((path for name in TEST_FILES if is_labelled(path := root / name)), None)
    if test_file is None:
        raise DataError(
            f"folder {str(root)!r} must hold train.tsv, and test.tsv or dev.tsv with labels. Check the path."
        )
    tokenizer = load_tokenizer(reading)
    parts = []
    for path in (root / "train.tsv", test_file):
        sentences, labels = read_sentences(path)
        parts.append(tokenise(tokenizer, sentences, labels, str(path)))
    train, test = parts
    sizes = (validation_size, calibration_size)
    return TextDataset(
        name=root.name,
        **set_aside(root.name, train, test, seed=seed, sizes=sizes, noun="sentence"),
        num_classes=count_classes(torch.cat([train.labels, test.labels]), str(root)),
        max_length=reading.max_length,
        sort=reading.sort,
    )
