"""Predicted latency as a function of the units removed, for budgets in milliseconds.

Layers are timed one by one, on a grid of widths. The saving of a model is the sum over its layers, plus the saving of
element-wise operations, which the table takes as proportional to the number of values that the layers write:

    T(removed) = T(dense) − s·[Σ_l (t_l(dense) − t_l(removed)) + e·(values(dense) − values(removed))]

`T(dense)` is measured on the whole model; so are `e` and `s`, from a model of half the width, and `s` again from the
models that are planned.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hessprune.costs.layer_shapes import Layer, Layers
from hessprune.costs.layer_times import Interpolation, LayerTimes, widths
from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.checks import nearest
from hessprune.foundation.formatting import shown
from hessprune.structure.groups import Group

FORMAT = 1
FASTER = 0.02
"""Share of its layers' time that a group must save by a narrower width; smaller savings do not pay for the units."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The latency of a model with any units removed, in milliseconds.

    `latency_table` measures one. Immutable: `after` and `corrected` return new tables.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> x = torch.zeros(8, 4)
        >>> table = hp.latency_table(net, hp.find_groups(net, x), x, hp.LatencyTarget(repeats=3))
        >>> table.groups, table.ms({"0": 16}) > 0
        (('0',), True)
        >>> hp.LatencyTable.from_json(table.to_json()) == table
        True
    """

    groups: tuple[str, ...]
    units: tuple[int, ...]
    """Units of each group."""
    steps: tuple[int, ...]
    """Units of each group that make a multiple of the channels that suit the kernels."""
    layers: Layers
    times: tuple[LayerTimes, ...]
    """One for each shape of layer."""
    dense_ms: float
    """Measured, of the whole model."""
    element_ms: float = 0.0
    """`e`, milliseconds of element-wise work for each value that layers write."""
    scale: float = 1.0
    """`s`: the measured saving of whole models over the saving of their layers."""
    target: Mapping[str, Any]
    """Runtime, threads, batch size, processor."""
    checks: tuple[Mapping[str, float], ...] = ()
    """Measured models: `predicted` and `measured` shares of the dense latency, and the scale `s` at that time."""

    def ms(self, num_removed: Mapping[str, int] | None = None) -> float:
        """Return the predicted milliseconds after removing that many units of each group.

        Raises:
            ArgumentError: A group is not in the table, or has no so many units.
        """
        units = dict(zip(self.groups, self.units, strict=True))
        for name, number in (num_removed or {}).items():
            if not 0 <= number <= units.get(name, -1):
                raise ArgumentError(
                    f"`num_removed` must hold numbers of units of the table's groups, got {shown(number)} in "
                    f"{shown(name)}.{nearest(name, self.groups)} Take names and numbers from hp.find_groups."
                )
        return float(self._ms(self._counts(num_removed or {})))

    def rounded(self, group: str, num_removed: int, step: int = 1) -> int:
        """Return how many of the chosen units of a group go, so that it stops at a width that measures as faster.

        Args:
            group: Its name.
            num_removed: Number of chosen units.
            step: Kept units are a multiple of this, too.
        """
        units = self.units[self.groups.index(group)]
        fit = (width for width in self.widths[group] if width >= units - num_removed and width % step == 0)
        return units - min(fit, default=units)

    @cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """For each group the widths that are faster than all wider ones, with all other groups dense."""
        return {name: self._faster(number) for number, name in enumerate(self.groups)}

    def after(self, num_removed: Mapping[str, int]) -> "LatencyTable":
        """Return the table of the pruned model."""
        counts = self._counts(num_removed)
        inputs, outputs, elements = (value.tolist() for value in self._sizes(counts))
        layers = tuple(
            replace(layer, inputs=inputs[number], outputs=outputs[number])
            for number, layer in enumerate(self.layers.layers)
        )
        return replace(
            self,
            units=tuple(int(n) for n in np.array(self.units) - counts),
            layers=replace(self.layers, layers=layers, elements=elements),
            dense_ms=self.ms(num_removed),
        )

    def calibrated(self, num_removed: Mapping[str, int], ms: float) -> "LatencyTable":
        """Return a table that also gives the measured milliseconds of another model.

        Element-wise operations explain the part of the saving that the layers do not, if the dense time has room for
        them beside the layers. Else layers and element-wise operations share all of the time; else the layers take it.
        """
        counts, free = self._counts(num_removed), replace(self, element_ms=0.0, scale=1.0)
        layers, values = free._dense_sum, self.layers.elements
        fewer = layers - float(free._sum(counts)), values - float(self._sizes(counts)[2])
        saved = self.dense_ms - ms
        element_ms = (saved - fewer[0]) / fewer[1] if fewer[1] > 0 else -1.0
        if element_ms >= 0 and layers + element_ms * values <= self.dense_ms:
            return replace(free, element_ms=element_ms)
        both = layers * fewer[1] - values * fewer[0]
        scale = (self.dense_ms * fewer[1] - values * saved) / both if both else -1.0
        rest = (layers * saved - self.dense_ms * fewer[0]) / both if both else -1.0
        if scale > 0 and rest >= 0:
            return replace(free, element_ms=rest / scale, scale=scale)
        return replace(free, scale=max(saved / fewer[0], 1e-3) if fewer[0] > 0 else 1.0)

    def corrected(self, num_removed: Mapping[str, int], share: float) -> "LatencyTable":
        """Return the table that predicts the measured shares of the dense latency, on average over all `checks`.

        Args:
            num_removed: Removed units of the measured model, by group name.
            share: Its milliseconds over the dense model's, measured in turns.
        """
        checked = self.checked(num_removed, share)
        scales = [
            check["scale"] * (1 - check["measured"]) / (1 - check["predicted"])
            for check in checked.checks
            if check["predicted"] < 1
        ]
        return replace(checked, scale=max(sum(scales) / len(scales), 1e-3)) if scales else checked

    def checked(self, num_removed: Mapping[str, int], share: float) -> "LatencyTable":
        """Return the same table with one more measured model among `checks`."""
        predicted = _digits(self.ms(num_removed) / self.dense_ms)
        check = {"predicted": predicted, "measured": _digits(share), "scale": _digits(self.scale)}
        return replace(self, checks=(*self.checks, check))

    def facts(self, num_removed: Mapping[str, int]) -> dict[str, Any]:
        """Return the facts for a plan's provenance: target, dense, predicted and measured milliseconds, checks."""
        predicted = self.ms(num_removed)
        ms = {"dense_ms": _digits(self.dense_ms), "predicted_ms": _digits(predicted)}
        if self.checks and self.checks[-1]["predicted"] == _digits(predicted / self.dense_ms):
            ms["measured_ms"] = _digits(self.checks[-1]["measured"] * self.dense_ms)
        return {**self.target, **ms, "checks": [dict(check) for check in self.checks]}

    def to_json(self) -> str:
        """Return the table as JSON; `LatencyTable.from_json` gives an equal table back."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """Read a table back.

        Raises:
            CheckpointError: The text is truncated, is not a table, or is of a newer format.
        """
        try:
            data = json.loads(text)
            if data.pop("format") > FORMAT:
                raise CheckpointError(f"the latency table must have format {FORMAT}. Upgrade hessprune.")
            data["times"] = tuple(LayerTimes.from_json(item) for item in data["times"])
            data["layers"] = _layers_from(data["layers"], {_key(item.shape): item.shape for item in data["times"]})
            lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
            return _with_times(cls(**{**data, **lists}))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise CheckpointError(
                f"the latency table must be complete JSON written by hessprune, got {shown(error)}. Measure it again."
            ) from error

    def _faster(self, number: int) -> tuple[int, ...]:
        """Return the widths of one group at which it may stop, rising."""
        units, step = self.units[number], self.steps[number]
        candidates = widths(units, step)
        counts = np.zeros((len(candidates), len(self.units)))
        counts[:, number] = units - np.array(candidates)
        ms = self._ms(counts)
        touched = self._reach[number]
        least = FASTER * self.scale * float(self._times(*self._sizes(counts[-1])[:2])[touched].sum())
        stops = [units]
        best = ms[-1]
        for width, value in zip(candidates[-2::-1], ms[-2::-1], strict=True):
            if value < best - least:
                stops.append(width)
                best = value
        return tuple(reversed(stops))

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        """Dense inputs and outputs `(L,)`, and per unit of each group `(G, L)`; values per unit `(G,)`."""
        layers, shape = self.layers.layers, (len(self.layers.layers), len(self.groups))
        sizes = np.array([[layer.inputs, layer.outputs] for layer in layers], dtype=float).reshape(-1, 2)
        inputs = np.array([layer.inputs_per_unit for layer in layers], dtype=float).reshape(shape).T
        outputs = np.array([layer.outputs_per_unit for layer in layers], dtype=float).reshape(shape).T
        return sizes[:, 0], sizes[:, 1], inputs, outputs, np.array(self.layers.elements_per_unit, dtype=float)

    @cached_property
    def _times(self) -> Interpolation:
        numbers = {item.shape: number for number, item in enumerate(self.times)}
        return Interpolation(self.times, [numbers[layer.shape] for layer in self.layers.layers])

    @cached_property
    def _reach(self) -> np.ndarray:
        """Mask `(G, L)` of the layers that get narrower with each group."""
        return (self._arrays[2] != 0) | (self._arrays[3] != 0)

    @cached_property
    def _dense_sum(self) -> float:
        return self._sum(np.zeros(len(self.groups)))

    def _sizes(self, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return inputs and outputs of all layers, `(…, L)`, and the number of values that products write, `(…)`."""
        inputs, outputs, fewer_inputs, fewer_outputs, fewer_values = self._arrays
        values = self.layers.elements - counts @ fewer_values
        return inputs - counts @ fewer_inputs, outputs - counts @ fewer_outputs, values

    def _sum(self, counts: np.ndarray) -> Any:
        inputs, outputs, values = self._sizes(counts)
        return self._times(inputs, outputs).sum(-1) + self.element_ms * values

    def _raw(self, counts: np.ndarray) -> Any:
        return self.dense_ms - self.scale * (self._dense_sum - self._sum(counts))

    def _ms(self, counts: np.ndarray) -> Any:
        return np.maximum(self._raw(counts), 0)

    def _counts(self, num_removed: Mapping[str, int]) -> np.ndarray:
        return np.array([number for _, number in self._pairs(num_removed)], dtype=float)

    def _pairs(self, num_removed: Mapping[str, int]) -> list[tuple[str, int]]:
        return [(name, num_removed.get(name, 0)) for name in self.groups]


def _with_times(table: LatencyTable) -> LatencyTable:
    """Return a table that was read from a file.

    Raises:
        ValueError: Its times are no numbers.
    """
    if not math.isfinite(table.ms()):
        raise ValueError("times that are no numbers")
    return table


def unit_step(group: Group, step: int) -> int:
    """Return the number of units of a group that makes a multiple of `step` channels."""
    pieces = group.slices_with_role("producer") or group.slices
    width = len(pieces[0].index[0])
    return step // int(np.gcd(step, width))


def _digits(value: float) -> float:
    return float(f"{value:.6g}")


def _key(shape: Any) -> str:
    return json.dumps(asdict(shape) if not isinstance(shape, Mapping) else shape, sort_keys=True)


def _layers_from(data: Mapping[str, Any], shapes: Mapping[str, Any]) -> Layers:
    def layer(item: Mapping[str, Any]) -> Layer:
        per_unit = {key: tuple(item[key]) for key in ("inputs_per_unit", "outputs_per_unit")}
        return Layer(**{**item, **per_unit, "shape": shapes[_key(item["shape"])]})

    layers: Sequence[Any] = data["layers"]
    return Layers(
        layers=tuple(layer(item) for item in layers),
        elements=data["elements"],
        elements_per_unit=tuple(data["elements_per_unit"]),
    )
