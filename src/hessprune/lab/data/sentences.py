"""Sentences as numbers: the tokens of a tokenizer, in memory, and their padding."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_range, optional_import
from hessprune.foundation.files import exists
from hessprune.foundation.formatting import shown
from hessprune.foundation.imports import zoo_import
from hessprune.lab.models.folders import gguf_in, load_gguf_tokenizer

FILE = "tokenizer.json"
PADS = ("[PAD]", "<pad>", "<|endoftext|>")
LARGEST_LENGTH = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class TextReading:
    """The way from sentences to batches.

    Attributes:
        tokenizer: A file `tokenizer.json`, or the folder that holds one.
        max_length: Tokens of a sentence; what is longer is cut.
        sort: Batches of sentences of about one length, which need less padding.
    """

    tokenizer: Path
    max_length: int = 128
    sort: bool = False

    def __post_init__(self) -> None:
        check_range("max_length", self.max_length, low=1, high=LARGEST_LENGTH, integer=True)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sentences:
    """Tokenised sentences with labels, all in memory.

    Example:
        >>> texts = Sentences(tokens=torch.tensor([5, 6, 7]), lengths=torch.tensor([1, 2]), labels=torch.tensor([0, 1]))
        >>> texts.read(torch.tensor([1, 0]))["input_ids"].tolist()
        [[6, 7], [5, 0]]
    """

    tokens: Tensor
    """int64, all sentences one after another."""
    lengths: Tensor
    """int64 `(N,)`."""
    labels: Tensor
    """int64 `(N,)`."""
    pad: int = 0
    """The token that fills a batch up."""

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Sentences":
        """Return the sentences at `indices`, in that order."""
        pieces = self.tokens.split(self.lengths.tolist())
        chosen = [pieces[i] for i in indices.tolist()]
        tokens = torch.cat(chosen) if chosen else self.tokens[:0]
        return Sentences(tokens=tokens, lengths=self.lengths[indices], labels=self.labels[indices], pad=self.pad)

    def read(self, indices: Tensor, length: int | None = None) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` `(B, T)`, padded to the longest sentence or to `length`."""
        lengths = self.lengths[indices]
        width = max(int(lengths.max()), length or 0)
        starts = (self.lengths.cumsum(0) - self.lengths)[indices]
        places = torch.arange(width, device="cpu")
        mask = places < lengths[:, None]
        tokens = self.tokens[(starts[:, None] + places).clamp_(max=len(self.tokens) - 1)]
        return {"input_ids": tokens.where(mask, self.pad), "attention_mask": mask.long()}

    def digest(self) -> bytes:
        """Return the SHA-256 of tokens, lengths and labels."""
        digest = hashlib.sha256(f"sentences, padded by {self.pad}".encode())
        for part in (self.tokens, self.lengths, self.labels):
            digest.update(part.contiguous().numpy().data)
        return digest.digest()


def load_tokenizer(reading: TextReading) -> Any:
    """Return the tokenizer of the package `tokenizers`, which cuts sentences and does not pad them.

    Raises:
        ArgumentError: There is no such file.
        DataError: The file holds no tokenizer.
        MissingDependencyError: The package is not installed.
    """
    path = reading.tokenizer / FILE if reading.tokenizer.is_dir() else reading.tokenizer
    if gguf_in(reading.tokenizer) is not None and not exists(path):
        return load_gguf_tokenizer(str(reading.tokenizer), zoo_import("transformers", "AutoTokenizer"))
    if not exists(path) or not path.is_file():
        raise ArgumentError(
            f"`tokenizer` must be a file {FILE} or a folder that holds one, got {shown(str(reading.tokenizer), 160)}. "
            "Give the folder of the model as it was saved, or the file."
        )
    package = optional_import("tokenizers", "text")
    try:
        tokenizer = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises a bare Exception
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"file {str(path)!r} must hold a tokenizer, got: {reason}. Save the tokenizer again."
        ) from error
    tokenizer.enable_truncation(reading.max_length)
    return tokenizer


def tokenise(tokenizer: Any, sentences: Sequence[str], labels: Tensor, path: str) -> Sentences:
    """Return the tokens of all sentences, special ones included.

    Raises:
        DataError: A sentence has no tokens.
    """
    pad = _pad_token(tokenizer)
    tokenizer.no_padding()
    encoded = [item.ids for item in tokenizer.encode_batch(list(sentences))]
    empty = next((number for number, ids in enumerate(encoded) if not ids), None)
    if empty is not None:
        raise DataError(f"sentence {empty + 1} of {path!r} must have a token, got {sentences[empty]!r}. Remove it.")
    return Sentences(
        tokens=torch.tensor([token for ids in encoded for token in ids], dtype=torch.int64, device="cpu"),
        lengths=torch.tensor([len(ids) for ids in encoded], dtype=torch.int64, device="cpu"),
        labels=labels,
        pad=pad,
    )


def _pad_token(tokenizer: Any) -> int:
    """Return the token that the tokenizer pads with, or one that is named like it."""
    padding = json.loads(tokenizer.to_str()).get("padding") or {}
    named = (tokenizer.token_to_id(name) for name in PADS)
    return int(padding.get("pad_id", next((token for token in named if token is not None), 0)))
