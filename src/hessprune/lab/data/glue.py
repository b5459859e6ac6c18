"""Sentences with labels, from the tab-separated files of GLUE."""

from pathlib import Path

import torch
from torch import Tensor

from hessprune.errors import DataError


def read_sentences(path: str | Path) -> tuple[tuple[str, ...], Tensor]:
    r"""Read `sentence<TAB>label` lines.

    A first line that names the columns `sentence` and `label`, as in GLUE's own SST-2, decides where they are.
    Quotes are plain characters.

    Args:
        path: A UTF-8 file.

    Returns:
        The sentences, and their labels as int64 `(N,)`.

    Raises:
        DataError: The file is missing, empty, or a line does not fit; the message has its number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "dev.tsv")
        ...     _ = file.write_text("sentence\tlabel\na fine film\t1\n")
        ...     read_sentences(file)
        (('a fine film',), tensor([1]))
    """
    path = Path(path)
    rows = [line.split("\t") for line in _lines(path)]
    columns = _header(rows[0]) if rows else None
    text_column, label_column = columns or (0, 1)
    start = 0 if columns is None else 1
    sentences: list[str] = []
    labels: list[int] = []
    for number, row in enumerate(rows[start:], start + 1):
        if len(row) <= max(text_column, label_column) or not row[label_column].strip().isdecimal():
            raise DataError(f"line {number} of {str(path)!r} must be sentence<TAB>label, got {'<TAB>'.join(row)!r}.")
        sentences.append(row[text_column])
        labels.append(int(row[label_column]))
    if not sentences:
        raise DataError(f"file {str(path)!r} must hold at least one line of sentence<TAB>label, got none.")
    return tuple(sentences), torch.tensor(labels, device="cpu")


def is_labelled(path: Path) -> bool:
    """Return whether a file exists and has labels: a header that names none has none."""
    if not path.is_file():
        return False
    first = (_lines(path) or [""])[0].split("\t")
    return "sentence" not in first or "label" in first


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file; only line feeds end a line, as sentences may hold stranger separators."""
    if not path.is_file():
        raise DataError(f"file {str(path)!r} must exist. Check the path.")
    try:
        text = path.read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"file {str(path)!r} must be UTF-8 text ({error}). Convert it.") from error
    return text.split("\n") if text else []


def _header(row: list[str]) -> tuple[int, int] | None:
    """Return where a header puts sentence and label, or `None` if the first line is data."""
    return (row.index("sentence"), row.index("label")) if {"sentence", "label"} <= set(row) else None
