"""The front door: a data set by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.files import exists
from hessprune.foundation.formatting import shown
from hessprune.lab.data.cifar import read_cifar10, read_cifar100
from hessprune.lab.data.dataset import Dataset
from hessprune.lab.data.digits import SIZES, read_digits
from hessprune.lab.data.grammar import read_grammar
from hessprune.lab.data.image_dataset import split_dataset
from hessprune.lab.data.image_folder import read_image_folder
from hessprune.lab.data.npz import read_npz
from hessprune.lab.data.parquet import read_parquet
from hessprune.lab.data.sentences import TextReading
from hessprune.lab.data.splits import OfficialSplits
from hessprune.lab.data.tsv import read_tsv
from hessprune.lab.data.wikitext import read_wikitext

READERS: dict[str, Callable[[Path], OfficialSplits]] = {
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "parquet": read_parquet,
    "npz": read_npz,
    "image-folder": read_image_folder,
}
TEXTS: dict[str, Callable[..., Dataset[Any]]] = {"tsv": read_tsv, "wikitext": read_wikitext}
GRAMMAR = "grammar"
BUILT_IN = (*SIZES, GRAMMAR)
"""Sources that need no folder."""


def available_sources() -> tuple[str, ...]:
    """Return the names that `load_dataset` knows."""
    return (*BUILT_IN, *READERS, *TEXTS)


def load_dataset(
    source: str,
    *,
    root: str | Path | None = None,
    seed: int = 0,
    validation_size: int | None = None,
    calibration_size: int = 512,
    test_size: int | None = None,
    text: TextReading | None = None,
) -> Dataset[Any]:
    """Load a data set and set validation and calibration samples aside.

    Args:
        source: `"digits"` or `"digits-16"` (built in, 8 or 16 pixels along each side); `"grammar"`
            (built-in sentences); `"cifar10"` or `"cifar100"` (the
            original archives, unpacked); `"parquet"` (Hugging Face image layout); `"npz"` (`train_images`,
            `train_labels`, `test_images`, `test_labels`); `"image-folder"` (`train/<class>/*.jpg`,
            `val/<class>/*.jpg`); `"tsv"` (sentences: `train.tsv`, `test.tsv`); `"wikitext"` (running text:
            `train.txt` or `valid.txt`, and `test.txt`).
        root: The folder or file to read; not for built-in data.
        seed: Decides which training samples are set aside; the test split never changes.
        validation_size: Training samples held out for choices; a tenth, at most 5 000, by default.
        calibration_size: Training samples to measure saliency on; at most all of them.
        test_size: The first test samples that are looked at; all of them if None.
        text: Tokenizer, length and padding, for `"tsv"` and `"wikitext"`.

    Returns:
        The data set, with labels checked and a fingerprint over all splits.

    Raises:
        ArgumentError: The source is unknown, `root` is missing, or a size is out of range.
        DataError: The files are missing, unreadable, empty, or inconsistent.

    Example:
        >>> data = load_dataset("digits", validation_size=200)
        >>> len(data.train), len(data.validation), len(data.test), data.input_shape
        (1147, 200, 450, (1, 8, 8))
    """
    check_choice("source", source, available_sources())
    check_range("seed", seed, low=0, integer=True)
    sizes: Any = {"seed": seed, "validation_size": validation_size, "calibration_size": calibration_size}
    if source in TEXTS:
        data = TEXTS[source](_existing(root, source), _given(text, source), **sizes)
    elif source == GRAMMAR:
        data = read_grammar(**sizes)
    else:
        official = read_digits(source) if source in SIZES else READERS[source](_existing(root, source))
        data = split_dataset(official, **sizes)
    return data if test_size is None else data.with_test(test_size)


def _given(text: TextReading | None, source: str) -> TextReading:
    """Return how sentences are read."""
    if text is None:
        raise ArgumentError(
            f"`tokenizer` must be given for source {source!r}, unless the model is hf:FOLDER. Name a tokenizer.json."
        )
    return text


def _existing(root: str | Path | None, source: str) -> Path:
    """Return `root` as a path that exists."""
    if root is None:
        raise ArgumentError(f"`root` must be given for source {source!r}: the folder or file that holds the data.")
    if not exists(root):
        raise DataError(f"`root` must be an existing folder or file, got {shown(str(root))}. Check the path.")
    return Path(root)
