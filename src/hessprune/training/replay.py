"""Batches that can be replayed: the k-th batch of an epoch is the same in every run, whoever was killed before it.

Each batch is drawn, and each step taken, under a seed derived from (seed, epoch, step). No random state has to be
stored, and what a step consumes (dropout) cannot shift what the next batch looks like (shuffling, augmentation).
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from hessprune.foundation.progress import known_length
from hessprune.foundation.state import seeded

_END = object()
"""Stands behind the last batch; a loader whose collate function fails may yield None before."""


def derived_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, and on nothing else.

    Example:
        >>> derived_seed(0, "step", 1) != derived_seed(0, "step", 2)
        True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def num_steps(batches: Iterable[Any]) -> int:
    """Return the number of batches, reading them where they have no length."""
    length = known_length(batches)
    return sum(1 for _ in batches) if length is None else length


def replayed(batches: Iterable[Any], *, seed: int, epoch: int, start_step: int = 0) -> Iterator[Any]:
    """Yield the batches of one epoch from `start_step` on.

    Batches, or their sampler, that offer `set_epoch(epoch)` are told. Batches that offer `iterate(epoch, start_step)`
    are asked; others are read from the start, and those before `start_step` dropped.
    """
    for shuffling in (batches, getattr(batches, "sampler", None)):
        if hasattr(shuffling, "set_epoch"):
            shuffling.set_epoch(epoch)  # type: ignore[union-attr]
    skips = hasattr(batches, "iterate")
    with seeded(derived_seed(seed, "epoch", epoch)):
        iterator = iter(batches.iterate(epoch, start_step) if skips else batches)  # type: ignore[attr-defined]
    step = start_step if skips else 0
    while True:
        with seeded(derived_seed(seed, "batch", epoch, step)):
            batch = next(iterator, _END)
        if batch is _END:
            return
        if step >= start_step:
            yield batch
        step += 1
