"""The machine and the packages on which the numbers of a run depend."""

import os
import platform
from importlib import metadata
from typing import Any

import torch

from hessprune.foundation.machine import cpu_name
from hessprune.lab.context import Run

_PACKAGES = ("hessprune", "torch", "numpy", "safetensors", "onnx", "onnxruntime", "torchao", "matplotlib")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Return the hardware and its use, as far as numbers depend on it."""
    return {
        "cpu": cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def timed_on(run: Run) -> list[Any]:
    """Return what decides milliseconds besides a model: the processor, the device and ONNX Runtime."""
    return [cpu_name(), str(run.device), versions().get("onnxruntime")]
