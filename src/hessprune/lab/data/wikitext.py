"""Running text in the files of WikiText: `train.txt`, `valid.txt`, `test.txt`, cut into sequences of equal length."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.lab.data.dataset import Split, set_aside
from hessprune.lab.data.sentences import Sentences, TextReading, load_tokenizer
from hessprune.lab.data.text_dataset import TextBatches, TextDataset

TRAIN_FILES = ("train.txt", "valid.txt")
SPACED = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([.,;:!?%)\]'])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r'" ([^"\n]*) "'), r'"\1"'),
    (re.compile(r" n't\b"), "n't"),
)
"""The marks that WikiText sets apart, and the way back."""


@dataclass(eq=False)
class SequenceBatches(TextBatches):
    """A re-iterable of dicts with `input_ids` `(B, T)` and, to train on, the same words as `labels`.

    Example:
        >>> texts = Sentences(tokens=torch.arange(6), lengths=torch.tensor([3, 3]), labels=torch.zeros(2).long())
        >>> [batch["input_ids"].tolist() for batch in SequenceBatches(texts, batch_size=1)]
        [[[0, 1, 2]], [[3, 4, 5]]]
    """

    labelled: bool = False
    noun: ClassVar[str] = "text"

    def _read(self, chunks: Sequence[Tensor], epoch: int) -> Iterator[dict[str, Tensor]]:
        del epoch
        for indices in chunks:
            words = self.arrays.read(indices)["input_ids"]
            yield {"input_ids": words, "labels": words} if self.labelled else {"input_ids": words}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunningText(TextDataset):
    """Sequences of words without labels, split once and for all."""

    noun: ClassVar[str] = "text"
    has_classes: ClassVar[bool] = False

    def _batches(self, split: Split, **how: Any) -> SequenceBatches:
        """Return the batches of a split; those to train on have labels."""
        return SequenceBatches(self.part(split), labelled=split == "train", **how)

    def example(self, split: Split, batch_size: int) -> dict[str, Tensor]:
        """Return the first sequences of a split."""
        part = self.part(split)
        return {"input_ids": part.read(torch.arange(min(batch_size, len(part)), device="cpu"))["input_ids"]}


def read_wikitext(
    root: Path, reading: TextReading, *, seed: int, validation_size: int | None, calibration_size: int
) -> RunningText:
    """Read, tokenise and cut a folder of running text; what is left at the end of a file is dropped.

    Training sequences are those of `train.txt`, or of `valid.txt` where that is missing. Validation and calibration
    sequences are taken from them.

    Args:
        root: The folder.
        reading: Tokenizer and length of the sequences.
        seed: Decides which sequences are set aside.
        validation_size: Sequences held out; `None` for a tenth, at most 5 000.
        calibration_size: Sequences of the rest to measure saliency on; at most all of them.

    Raises:
        DataError: A file is missing, no text, or too short.
    """
    first = next((root / name for name in TRAIN_FILES if (root / name).is_file()), None)
    if first is None or not (root / "test.txt").is_file():
        raise DataError(f"folder {str(root)!r} must hold test.txt, and train.txt or valid.txt. Check the path.")
    tokenizer = load_tokenizer(reading)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    train, test = (_sequences(tokenizer, path, reading.max_length) for path in (first, root / "test.txt"))
    sizes = (validation_size, calibration_size)
    return RunningText(
        name=root.name,
        **set_aside(root.name, train, test, seed=seed, sizes=sizes, noun="text"),
        num_classes=1,
        max_length=reading.max_length,
    )


def detokenised(text: str) -> str:
    """Return a text of WikiText as people write it: marks, brackets and apostrophes where they belong.

    Example:
        >>> from hessprune.lab.data.wikitext import detokenised
        >>> detokenised('He paid 1 @,@ 000 ( or " so " ) , a well @-@ known price .')
        'He paid 1,000 (or "so"), a well-known price.'
    """
    for pattern, plain in SPACED:
        text = pattern.sub(plain, text)
    return text


def _sequences(tokenizer: Any, path: Path, length: int) -> Sentences:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"file {str(path)!r} must be UTF-8 text ({error}). Convert it.") from error
    words = torch.tensor(
        tokenizer.encode(detokenised(text), add_special_tokens=False).ids, dtype=torch.int64, device="cpu"
    )
    number = len(words) // length
    if not number:
        raise DataError(
            f"file {str(path)!r} must hold {length} tokens for one sequence, got {len(words)}. Lower max_length."
        )
    lengths = torch.full((number,), length, device="cpu")
    return Sentences(tokens=words[: number * length], lengths=lengths, labels=torch.zeros_like(lengths))
