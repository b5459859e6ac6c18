"""Large tensors within a limit of memory: beyond it they lie in mapped files, which vanish with them."""

import contextlib
import math
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor


class Shelf:
    """Gives tensors out: in memory as long as the limit holds, then in mapped files of the temporary folder.

    The numbers are the same in both. The system writes pages of a mapped file to the disk when memory is short. Tensors
    of other devices than the CPU are always in memory.

    Args:
        limit: Bytes in memory at a time; None for no limit.

    Example:
        >>> from hessprune.foundation.shelf import Shelf
        >>> shelf = Shelf(limit=100)
        >>> small, large = shelf.zeros(3, 4), shelf.zeros(4, 4)
        >>> shelf.in_memory, shelf.in_files
        (96, 128)
        >>> del small
        >>> shelf.in_memory
        0
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.in_memory, self.in_files = limit, 0, 0

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """Return zeros; the bytes are free again once the returned tensor itself is."""
        size = math.prod(shape) * dtype.itemsize
        mapped = self.limit is not None and size > 0 and self.in_memory + size > self.limit
        if mapped and torch.device(device).type == "cpu":
            tensor = _mapped(math.prod(shape), dtype).view(shape)
            self.in_files += size
            weakref.finalize(tensor, self._give_back, 0, size)
        else:
            tensor = torch.zeros(shape, dtype=dtype, device=device)
            self.in_memory += size
            weakref.finalize(tensor, self._give_back, size, 0)
        return tensor

    def _give_back(self, in_memory: int, in_files: int) -> None:
        self.in_memory, self.in_files = self.in_memory - in_memory, self.in_files - in_files


def _mapped(numel: int, dtype: torch.dtype) -> Tensor:
    """Return zeros in a file that has no name any more, where the system allows that."""
    handle, name = tempfile.mkstemp(prefix="hessprune-")
    os.close(handle)
    try:
        return torch.from_file(name, shared=True, size=numel, dtype=dtype)
    finally:
        with contextlib.suppress(OSError):  # of a system that keeps the names of mapped files
            Path(name).unlink()


def free_disk() -> int:
    """Return the bytes that mapped files may take."""
    return shutil.disk_usage(tempfile.gettempdir()).free
