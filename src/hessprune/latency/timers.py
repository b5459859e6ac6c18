"""Timers: the latency of single layers and whole models in torch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from hessprune.costs.layer_shapes import LayerShape
from hessprune.costs.target import LatencyTarget
from hessprune.foundation.modules import device_of
from hessprune.foundation.state import torch_threads
from hessprune.latency.measure import clock_of, latency_rounds

ROUNDS = 8


class Case(NamedTuple):
    """A layer shape with the numbers of input and output channels to time."""

    shape: LayerShape
    inputs: int
    outputs: int


class Timer(Protocol):
    """Measures latencies in one runtime; tests replace it by a formula."""

    def layers(self, cases: Sequence[Case]) -> list[float]:
        """Return the milliseconds of each layer, timed in turns."""
        ...

    def models(self, models: Mapping[str, nn.Module]) -> list[dict[str, float]]:
        """Return rounds of one call per model, with the milliseconds of each model on the batch of the target."""
        ...


class TorchTimer:
    """Times layers and modules in torch, on the device and in the dtype of a model."""

    def __init__(self, model: nn.Module, example_inputs: Any, target: LatencyTarget) -> None:
        self._example, self._target = example_inputs, target
        self._device = device_of(model)
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def layers(self, cases: Sequence[Case]) -> list[float]:
        """Return the milliseconds of each layer, timed in turns."""
        clock = clock_of(self._device)
        with torch_threads(self._target.num_threads), torch.inference_mode():
            calls = [self._call(case) for case in cases]
            rounds = [[clock(call) for call in calls] for _ in range(ROUNDS + 1)]
        return [quiet_mean(times[1:]) for times in zip(*rounds, strict=True)]

    def models(self, models: Mapping[str, nn.Module]) -> list[dict[str, float]]:
        """Return the milliseconds of each model, in rounds."""
        threads, repeats = self._target.num_threads, self._target.repeats
        return latency_rounds(models, self._example, num_threads=threads, warmup=3, repeats=repeats)

    def _call(self, case: Case) -> Callable[[], Any]:
        shape = case.shape
        inputs, outputs, groups = shape.at(case.inputs, case.outputs)
        x, bias = self._zeros(shape.rows[0], inputs, *shape.rows[1:]), self._zeros(outputs)
        if shape.kind == "linear":
            weight = self._zeros(outputs, inputs)
            return lambda: nn.functional.linear(x, weight, bias)
        axes = (inputs, outputs // groups) if shape.transposed else (outputs, inputs // groups)
        weight, places = self._zeros(*axes, *shape.kernel), (shape.stride, shape.padding, shape.dilation)
        return lambda: torch.convolution(x, weight, bias, *places, shape.transposed, shape.output_padding, groups)

    def _zeros(self, *sizes: int) -> torch.Tensor:
        return torch.zeros(sizes, device=self._device, dtype=self._dtype)


def quiet_mean(times: Sequence[float]) -> float:
    """Return the mean of the shorter half of the times, because disturbances of the machine only lengthen a call.

    Example:
        >>> from hessprune.latency.timers import quiet_mean
        >>> quiet_mean([1.0, 9.0, 2.0, 5.0])
        1.5
    """
    half = sorted(times)[: max(1, len(times) // 2)]
    return sum(half) / len(half)
