"""Fake quantisers: round a tensor to the grid of integers, and let gradients through.

With scale s, zero point z and integers from a to b, `q(x) = s·(clamp(round(x/s) + z, a, b) − z)`. Its gradient is 1
inside the range and 0 outside. The range of a weight is its own, that of an activation comes from calibration batches.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from hessprune.errors import ArgumentError

MOMENTUM = 0.01  # weight of a new batch in the moving average of activation ranges
BINS = 2048
SHRINKS = torch.linspace(1, 0.25, 16, device="cpu")  # candidate ranges, as shares of the observed range


def activation_spec(kind: str) -> QuantizationSpec:
    """Return the grid of activations: uint8 with a zero point, or int8 around zero."""
    if kind == "symmetric":
        return _spec(ActivationQuantizer, torch.int8, -127, 127, torch.per_tensor_symmetric)
    return _spec(ActivationQuantizer, torch.uint8, 0, 255, torch.per_tensor_affine)


def weight_specs(bits: int) -> dict[int, QuantizationSpec]:
    """Return the grids of weights, by axis of their output channels."""
    limit = {7: 64, 8: 127}[bits]  # 2·255·64 is below 2¹⁵
    return {
        axis: _spec(
            WeightQuantizer.with_args(ch_axis=axis), torch.int8, -limit, limit, torch.per_channel_symmetric, axis
        )
        for axis in (0, 1)
    }


def _spec(
    quantizer: Any, dtype: torch.dtype, low: int, high: int, scheme: torch.qscheme, axis: int | None = None
) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=dtype, observer_or_fake_quant_ctr=quantizer, quant_min=low, quant_max=high, qscheme=scheme, ch_axis=axis
    )


class FakeQuantizer(FakeQuantizeBase):
    """A fake quantiser as torchao expects it, which replaces it by integer operators at conversion."""

    is_dynamic = False

    def __init__(
        self, *, dtype: torch.dtype, quant_min: int, quant_max: int, qscheme: torch.qscheme, is_dynamic: bool = False
    ) -> None:
        super().__init__()
        assert not is_dynamic
        self.dtype, self.qscheme, self.quant_min, self.quant_max = dtype, qscheme, quant_min, quant_max
        self.rounds = True  # if False, the forward returns its input

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Round x to the grid."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return scale and zero point."""


class WeightQuantizer(FakeQuantizer):
    """Round a weight symmetrically, with one scale `s = max|w| / b` per output channel, computed in every forward."""

    def __init__(
        self,
        *,
        ch_axis: int,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, quant_min=quant_min, quant_max=quant_max, qscheme=qscheme, is_dynamic=is_dynamic)
        self.ch_axis = ch_axis
        self.scale = torch.ones(1, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        """Round the weight to its grid."""
        if not self.rounds:
            return x
        largest = x.detach().abs().transpose(0, self.ch_axis).flatten(1).amax(1)
        self.scale = (largest / self.quant_max).clamp(min=torch.finfo(torch.float32).eps)
        scale, zero = self.calculate_qparams()
        return torch.fake_quantize_per_channel_affine(x, scale, zero, self.ch_axis, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scales and zero points, `(C,)` each."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int32)


class ActivationQuantizer(FakeQuantizer):
    """Round an activation, with one scale per tensor, `least_step` or more.

    Calibration sets the range. In training the range follows a moving average of the batches until it is frozen.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        *,
        dtype: torch.dtype,
        quant_min: int,
        quant_max: int,
        qscheme: torch.qscheme,
        is_dynamic: bool = False,
        least_step: float = torch.finfo(torch.float32).eps,
    ) -> None:
        super().__init__(dtype=dtype, quant_min=quant_min, quant_max=quant_max, qscheme=qscheme, is_dynamic=is_dynamic)
        self.least_step = least_step
        self.register_buffer("low", torch.zeros((), device="cpu"))
        self.register_buffer("high", torch.zeros((), device="cpu"))
        self.statistic: Callable[[Tensor], None] | None = None  # set during calibration, when nothing is rounded

    @property
    def is_calibrated(self) -> bool:
        """Whether the range is set."""
        return bool(self.high > self.low)

    def forward(self, x: Tensor) -> Tensor:
        """Round x to the grid, or update the statistic and return x."""
        if self.statistic is not None:
            self.statistic(x.detach())
        if self.statistic is not None or not self.rounds:
            return x
        if self.training and bool(self.observer_enabled):
            self._follow(*x.detach().aminmax())
        elif not self.is_calibrated:
            raise ArgumentError(
                "activations must be calibrated before the model is run, got no ranges. "
                "Call hp.calibrate(model, batches)."
            )
        grid = self.calculate_qparams()
        return torch.fake_quantize_per_tensor_affine(x, *grid, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point."""
        return self._grid(self.low, self.high)

    def rounded(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Round x to the grid of a range, or to the grids of several ranges, without gradients."""
        scale, zero = self._grid(low, high)
        return scale * ((x / scale).round().add(zero).clamp(self.quant_min, self.quant_max) - zero)

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a range; zero lies on every grid."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        if self.qscheme == torch.per_tensor_symmetric:
            low, high = -torch.maximum(-low, high), torch.maximum(-low, high)
        scale = ((high - low) / (self.quant_max - self.quant_min)).clamp(min=self.least_step)
        zero = (self.quant_min - torch.round(low / scale)).clamp(self.quant_min, self.quant_max)
        return scale, zero.to(torch.int32)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Replace the range; [0, 1] is exact for values that are always zero, and steps of biases are not tiny."""
        self.low.copy_(low)
        self.high.copy_(torch.where(high > low, high, low + 1))

    def _follow(self, low: Tensor, high: Tensor) -> None:
        low, high = low.clamp(max=0), high.clamp(min=0)
        if not self.is_calibrated:
            self.set_range(low, high)
        elif bool(high > low):  # zeros tell nothing of the range
            self.set_range(self.low.lerp(low, MOMENTUM), self.high.lerp(high, MOMENTUM))


class Statistic(Protocol):
    """A statistic of an activation, updated with every batch."""

    def __call__(self, x: Tensor) -> None:
        """Take in the values of a batch."""


class Extremes:
    """Smallest and largest value over all batches, with 0 between them."""

    def __init__(self) -> None:
        self.low, self.high = torch.tensor(0.0, device="cpu"), torch.tensor(0.0, device="cpu")

    def __call__(self, x: Tensor) -> None:
        """Take in the values of a batch."""
        low, high = x.float().aminmax()
        self.low, self.high = torch.minimum(self.low, low.cpu()), torch.maximum(self.high, high.cpu())


class Histogram:
    """Number of values in each of `BINS` bins between two extremes."""

    def __init__(self, extremes: Extremes) -> None:
        self.low, self.high = extremes.low, extremes.high
        self.counts = torch.zeros(BINS, dtype=torch.float64, device="cpu")

    def __call__(self, x: Tensor) -> None:
        """Take in the values of a batch."""
        self.counts += torch.histc(x.float().cpu(), BINS, float(self.low), float(self.high)).double()

    def best_range(self, quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor]:
        """Return the range inside the observed range that minimises the mean squared error of rounding."""
        centres = torch.linspace(float(self.low), float(self.high), 2 * BINS + 1, device="cpu")[1::2]
        ranges = torch.cartesian_prod(self.low * SHRINKS, self.high * SHRINKS).unique(dim=0)  # (R, 2)
        rounded = quantizer.rounded(centres, *ranges[:, :, None].unbind(1))  # (R, BINS)
        errors = (rounded - centres).square().double() @ self.counts
        low, high = ranges[errors.argmin()]
        return low, high
