"""Number formats of a model's passes, with the loss scale of FP16.

FP16 has no numbers below 6e-8. Cotangents and losses are therefore multiplied by a *fixed* power of two, and the
results are divided by it in FP32. A result that is not finite is counted, discarded and repeated at a lower scale, so
that all probes keep the same weight.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, NumericalError
from hessprune.foundation.checks import check_choice

_log = logging.getLogger(__name__)
_STEP = 16.0
_SMALLEST = 2.0**-24


@dataclass(kw_only=True)
class Precision:
    """Number formats of a model: parameters in `dtype`, matrix products in `autocast` unless that is None."""

    name: str
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scale: float = 1.0
    """Current factor on losses and cotangents."""
    num_rejected: int = field(default=0)

    def casting(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the autocast context for a forward pass."""
        return torch.autocast(device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def finite(self, compute: Callable[[float], Tensor]) -> Tensor:
        """Return `compute(scale)`, and lower the scale until all entries are finite.

        Raises:
            NumericalError: The result is not finite at any scale.
        """
        while True:
            value = compute(self.scale)
            if bool(torch.isfinite(value).all()):
                return value
            if self.autocast is not torch.float16 or self.scale <= _SMALLEST:
                remedy = "precision='fp32'" if self.autocast else "a checkpoint that converged"
                raise NumericalError(
                    f"curvature must be finite, got NaN or infinity in {self.name}. Likely causes: (a) activations "
                    f"beyond the format's range, (b) weights that diverged. Use {remedy} to tell them apart."
                )
            self.num_rejected += 1
            self.scale /= _STEP


def resolve(name: str, device: torch.device) -> Precision:
    """Return the number formats for `fp32`, `bf16`, `fp16` or `fp64` on a device.

    On a processor without BF16 kernels, BF16 means FP32: it is faster there, and more precise.

    Raises:
        ArgumentError: `name` is unknown, or is FP16 on a CPU, where it is emulated and many times slower.

    Example:
        >>> import torch
        >>> from hessprune.curvature.precision import resolve
        >>> resolve("fp64", torch.device("cpu")).dtype
        torch.float64
    """
    check_choice("precision", name, ("fp32", "bf16", "fp16", "fp64"))
    if name == "fp64":
        return Precision(name=name, dtype=torch.float64)
    if name == "fp16":
        if device.type == "cpu":
            raise ArgumentError(
                "`precision` must be one that the device computes in, got 'fp16' on a CPU, where it is far slower than "
                "fp32. Use precision='bf16'."
            )
        return Precision(name=name, autocast=torch.float16, scale=2.0**10)
    if name == "bf16" and has_bf16(device):
        return Precision(name=name, autocast=torch.bfloat16)
    if name == "bf16":
        _log.warning("this processor has no bfloat16 kernels: computing in fp32 instead")
    return Precision(name="fp32")


def has_bf16(device: torch.device) -> bool:
    """Return True if convolutions and matrix products run natively in bfloat16 on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
