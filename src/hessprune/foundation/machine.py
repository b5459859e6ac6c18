"""The machine that runs: its processor, and how much memory is free."""

import os
import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Return the bytes of memory that are free on a device, within the limit of a container if there is one.

    Example:
        >>> from hessprune.foundation.machine import free_bytes
        >>> free_bytes() > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(), _left_in_container(Path("/sys/fs/cgroup"))]
    return min(size for size in found if size is not None)


def _available() -> int:
    """Return what the system could give without swapping; half of all memory where it does not say."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text("utf-8", "replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 4 << 30


def _left_in_container(folder: Path) -> int | None:
    """Return what a control group leaves, or None where it sets no limit."""
    try:
        limit, used = ((folder / name).read_text("ascii").strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no such files, or "max"
        return None
