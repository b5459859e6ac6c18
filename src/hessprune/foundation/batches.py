"""Calibration batches that are read several times: the same order each time, the caller's random state untouched."""

from collections.abc import Iterator
from typing import Any

import torch

from hessprune.foundation.checks import check_rereadable
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import leading_size


class Rereadable:
    """Batches that give the same samples in the same order on every pass.

    A loader that shuffles or augments draws from torch's global generators. Each batch is drawn under a seed of its
    own, and the generators are restored after each batch. The loader's own generator, if there is one, is restored
    after each pass. Samples are counted on the first whole pass.

    Args:
        batches: Any re-iterable.
        seed: For what the batches draw at random.

    Raises:
        DataError: The batches can be read only once, or cannot be iterated.

    Example:
        >>> import torch
        >>> batches = Rereadable([(torch.zeros(3, 1), torch.zeros(3))])
        >>> batches.num_samples, len(list(batches)), batches.num_samples
        (0, 1, 3)
    """

    def __init__(self, batches: Any, seed: int = 0) -> None:
        check_rereadable(batches)
        self.batches, self.seed, self.num_samples = batches, seed, 0

    @classmethod
    def of(cls, batches: Any) -> "Rereadable":
        """Wrap batches, unless they are wrapped already."""
        return batches if isinstance(batches, cls) else cls(batches)

    def __iter__(self) -> Iterator[Any]:
        generator = getattr(self.batches, "generator", None)
        state = generator.get_state() if isinstance(generator, torch.Generator) else None
        try:
            yield from self._seeded_pass()
        finally:
            if state is not None:
                self.batches.generator.set_state(state)

    def _seeded_pass(self) -> Iterator[Any]:
        with seeded(self.seed):
            iterator = iter(self.batches)
        count = 0
        while True:
            with seeded(self.seed + 1 + count):
                batch = next(iterator, None)
            if batch is None:
                break
            count += leading_size(batch[0]) if isinstance(batch, tuple | list) else leading_size(batch)
            yield batch
        self.num_samples = count

    def __getattr__(self, name: str) -> Any:
        """Answer as the batches do, `__len__` included."""
        if name in {"batches", "__setstate__"}:
            raise AttributeError(name)
        return getattr(self.batches, name)
