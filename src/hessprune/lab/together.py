"""A run by several processes: `torchrun --nproc_per_node 2 -m hessprune run RECIPE`.

All processes go through the same stages. Stages that read the calibration samples for a pruning are shared out, and the
first process makes the others alone. Only the first process writes into the folder of the run.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from hessprune.foundation.processes import alone, num_processes, rank, summed

PATIENCE = timedelta(days=7)
"""The others wait while the first process trains."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did, for this block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def told(ask: Callable[[], bool]) -> bool:
    """Return what the first process answers; the others do not ask."""
    return bool(summed(torch.tensor([int(rank() == 0 and ask())], device="cpu")).item())


@contextmanager
def one_writes(folder: Path, *, shared: bool) -> Iterator[Path | None]:
    """Yield the folder in which this process works, and let all processes leave together.

    Args:
        folder: The first process works in it; the others in copies that vanish, so that all start from the same files.
        shared: Whether all processes work; else the first one works alone, and the others get None.
    """
    if num_processes() == 1:
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        if rank() and shared:
            shutil.copytree(folder, copy, dirs_exist_ok=True)
        _meet()
        own = folder if rank() == 0 else Path(copy)
        if shared:
            yield own
        else:
            yield from _by_the_first(own)
        _meet()


def _by_the_first(folder: Path) -> Iterator[Path | None]:
    is_first = rank() == 0
    with alone():
        yield folder if is_first else None


def _meet() -> None:
    summed(torch.zeros(1, device="cpu"))
