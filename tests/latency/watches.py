"""Stop-watches that read a formula instead of a clock, so that what is measured is known exactly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hessprune.costs.layer_shapes import LayerShape, find_layers
from hessprune.latency.timers import Case

Formula = Callable[[LayerShape, int, int], float]


def by_macs(shape: LayerShape, inputs: int, outputs: int) -> float:
    """Return a millisecond for 100 000 MACs, and a thousandth for the call: bilinear in the widths."""
    inputs, outputs, groups = shape.at(inputs, outputs)
    return 1e-3 + 1e-5 * inputs * outputs / groups * torch.tensor((*shape.rows, *shape.kernel)).prod().item()


def in_tiles(tile: int) -> Formula:
    """Return a formula of kernels that work on whole tiles of channels."""

    def formula(shape: LayerShape, inputs: int, outputs: int) -> float:
        up = [-(-width // tile) * tile for width in (inputs, outputs)]
        return 1e-5 * up[0] * up[1]

    return formula


class Watch:
    """Layers cost what a formula says; models cost their layers, `per_value` for what these write, and `fixed`."""

    def __init__(
        self, example: Any, formula: Formula = by_macs, *, per_value: float = 0.0, fixed: float = 0.0, s: float = 1.0
    ) -> None:
        self.example, self.formula, self.per_value, self.fixed, self.s = example, formula, per_value, fixed, s
        self.timed: list[Case] = []
        self.num_models = 0

    def layers(self, cases: Sequence[Case]) -> list[float]:
        self.timed += cases
        return [self.formula(*case) for case in cases]

    def models(self, models: Mapping[str, nn.Module]) -> list[dict[str, float]]:
        self.num_models += len(models)
        return [{name: self.ms(model) for name, model in models.items()}]

    def ms(self, model: nn.Module) -> float:
        found = find_layers(model, [], self.example)
        shapes = [layer.shape for layer in found.layers]
        layers = sum(self.formula(shape, shape.inputs, shape.outputs) for shape in shapes)
        return self.s * layers + self.per_value * found.elements + self.fixed
