"""Sentences with labels: batches by keyword, as Hugging Face's models take them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hessprune.lab.data.batches import Batches
from hessprune.lab.data.dataset import Dataset, Split
from hessprune.lab.data.sentences import Sentences

POOL = 50
"""Batches whose sentences are sorted together: enough for little padding, and few enough to leave batches random."""


@dataclass(eq=False)
class TextBatches(Batches[Sentences]):
    """A re-iterable of dicts with `input_ids` and `attention_mask` `(B, T)` and `labels` `(B,)`, all int64.

    Each batch is padded to its longest sentence.

    Args:
        arrays: Sentences.
        batch_size: Sentences in a batch; the last one may be smaller.
        sort: Batches of sentences of about one length; when shuffling, each epoch draws others.
        shuffle: Draw a new order in each epoch.
        seed: Decides the order.
        drop_last: Leave out a smaller last batch.

    Raises:
        DataError: `arrays` is empty, or smaller than a batch with `drop_last`.
        ArgumentError: Another argument is out of range.

    Example:
        >>> texts = Sentences(tokens=torch.arange(6), lengths=torch.tensor([1, 3, 2]), labels=torch.tensor([0, 1, 0]))
        >>> [batch["input_ids"].tolist() for batch in TextBatches(texts, batch_size=2)]
        [[[0, 0, 0], [1, 2, 3]], [[4, 5]]]
    """

    sort: bool = False
    noun: ClassVar[str] = "sentence"

    def _read(self, chunks: Sequence[Tensor], epoch: int) -> Iterator[dict[str, Tensor]]:
        del epoch
        for indices in chunks:
            yield self.arrays.read(indices) | {"labels": self.arrays.labels[indices]}

    def _chunks(self, epoch: int) -> Sequence[Tensor]:
        order, size = self._order(epoch), self.batch_size
        if not self.sort:
            return order.split(size)
        if not self.shuffle:
            return order[self._by_length(order)].split(size)
        pools = [pool[self._by_length(pool)] for pool in order.split(size * POOL)]
        chunks = [chunk for pool in pools for chunk in pool.split(size)]
        whole = [chunk for chunk in chunks if len(chunk) == size]
        drawn = np.random.default_rng([self.seed, epoch, 2]).permutation(len(whole))
        return [whole[i] for i in drawn] + [chunk for chunk in chunks if len(chunk) < size]

    def _by_length(self, indices: Tensor) -> Tensor:
        return torch.argsort(self.arrays.lengths[indices], stable=True)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextDataset(Dataset[Sentences]):
    """Labelled sentences, split once and for all."""

    max_length: int
    """Tokens of a sentence; longer ones were cut."""
    sort: bool = False
    """Batches of sentences of about one length."""
    noun: ClassVar[str] = "sentence"
    has_lengths: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_splits()

    @property
    def input_shape(self) -> tuple[int]:
        """The most tokens of a sentence."""
        return (self.max_length,)

    @property
    def reading(self) -> list[Any]:
        """How sentences share batches."""
        return [self.max_length, self.sort]

    def batches(
        self, split: Split, batch_size: int, *, augment: Any = False, shuffle: bool | None = None, seed: int = 0
    ) -> TextBatches:
        """Return the batches of a split.

        Args:
            split: `"train"`, `"validation"`, `"calibration"` or `"test"`.
            batch_size: Sentences in a batch. When shuffling, a smaller last batch is left out.
            augment: Not for sentences.
            shuffle: Draw a new order in each epoch; by default for `"train"` only.
            seed: Decides the order.

        Returns:
            A re-iterable of dicts with `labels` inside.

        Raises:
            ArgumentError: The split or another argument is not valid.
        """
        del augment
        sentences = self.part(split)
        shuffles = split == "train" if shuffle is None else shuffle
        full = shuffles and len(sentences) > batch_size
        return self._batches(split, batch_size=batch_size, shuffle=shuffles, seed=seed, drop_last=full)

    def _batches(self, split: Split, **how: Any) -> TextBatches:
        """Return the batches of a split as they are read."""
        return TextBatches(self.part(split), sort=self.sort, **how)

    def example(self, split: Split, batch_size: int) -> dict[str, Tensor]:
        """Return the longest sentences of a split, padded to the most tokens that a sentence may have."""
        sentences = self.part(split)
        longest = torch.argsort(sentences.lengths, descending=True, stable=True)[:batch_size]
        return sentences.read(longest, self.max_length)
