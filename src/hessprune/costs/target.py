"""The target of a budget of time: the runtime, its threads, and the batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from hessprune.foundation.checks import check_choice, check_range, optional_import
from hessprune.foundation.machine import cpu_name
from hessprune.foundation.modules import device_of

RUNTIMES = ("torch", "onnxruntime", "onnxruntime-int8")


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTarget:
    """The runtime, threads and batch of a budget of time. Shares refer to the dense model on the same target.

    Args:
        runtime: `"torch"`: the module in FP32, on its own device. `"onnxruntime"`: its ONNX file. `"onnxruntime-int8"`:
            the integer file that `prepare_qat`, `convert_qat` and `export_onnx` make of it.
        num_threads: CPU threads.
        batch_size: Samples in a forward; that of the example inputs by default.
        round_to: Candidate widths are multiples of this many channels, and of twice as many from four times that on.
            Groups stop only at widths that measure as faster.
        repeats: Timed forwards of whole models.

    Raises:
        ArgumentError: A value is out of range.

    Example:
        >>> import hessprune as hp
        >>> hp.Budget(latency_ms="50%", target=hp.LatencyTarget(runtime="onnxruntime", batch_size=8)).share
        0.5
    """

    runtime: Literal["torch", "onnxruntime", "onnxruntime-int8"] = "torch"
    num_threads: int = 1
    batch_size: int | None = None
    round_to: int = 8
    repeats: int = 20

    def __post_init__(self) -> None:
        check_choice("runtime", self.runtime, RUNTIMES)
        for name in ("num_threads", "batch_size", "round_to", "repeats"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=1, integer=True)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "LatencyTarget":
        """Return the target that a table was measured on."""
        names = ("runtime", "num_threads", "batch_size", "round_to", "repeats")
        return cls(**{name: facts[name] for name in names})

    def facts(self, model: nn.Module, batch_size: int) -> dict[str, Any]:
        """Return all that timings depend on besides the widths of a model; JSON values."""
        package = self.runtime.partition("-")[0]
        device = device_of(model).type if self.runtime == "torch" else "cpu"  # which files run on
        return {
            "runtime": self.runtime,
            "version": optional_import(package, "export").__version__,
            "num_threads": self.num_threads,
            "batch_size": batch_size,
            "round_to": self.round_to,
            "repeats": self.repeats,
            "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name() if device == "cpu" else device,
            "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
        }
