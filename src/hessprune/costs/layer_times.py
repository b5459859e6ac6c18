"""Times of layers of one shape on a grid of widths, and the interpolation between the points for many layers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hessprune.costs.layer_shapes import LayerShape

MOST_POINTS = 6
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTimes:
    """Milliseconds of one layer, for each of some numbers of inputs and outputs."""

    shape: LayerShape
    inputs: tuple[int, ...]
    """Rising; of a width that cannot shrink the dense one alone."""
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    """`(len(inputs), len(outputs))`."""

    def to_json(self) -> dict[str, Any]:
        """Return nested JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LayerTimes":
        """Read back what `to_json` returned.

        Raises:
            ValueError: The times are no numbers, or not one for each pair of widths.
        """
        shape: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data["shape"].items()
        }
        inputs, outputs, ms = tuple(data["inputs"]), tuple(data["outputs"]), tuple(map(tuple, data["ms"]))
        if np.array(ms, dtype=float).shape != (len(inputs), len(outputs)) or not np.isfinite(np.array(ms)).all():
            raise ValueError("times must be finite, one for each pair of inputs and outputs")
        return cls(shape=LayerShape(**shape), inputs=inputs, outputs=outputs, ms=ms)


def widths(dense: int, step: int) -> tuple[int, ...]:
    """Return the candidate widths: multiples of `step` up to four, then of twice that, then `dense`.

    Example:
        >>> from hessprune.costs.layer_times import widths
        >>> widths(64, 8), widths(20, 8), widths(4, 8)
        ((8, 16, 24, 32, 48, 64), (8, 16, 20), (4,))
    """
    narrow, wide = range(step, min(dense, 4 * step + 1), step), range(6 * step, dense, 2 * step)
    return (*narrow, *wide, dense)


def grid(shape: LayerShape, step: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the numbers of inputs and of outputs at which layers of a shape are timed."""
    whole = shape.inputs_per_group is not None  # groups go, and inputs with outputs
    atom = shape.outputs // shape.groups if whole else shape.groups
    inputs = _points(shape.inputs, step, atom) if shape.varying[0] and not whole else (shape.inputs,)
    return inputs, _points(shape.outputs, step, atom) if shape.varying[1] else (shape.outputs,)


def _points(dense: int, step: int, atom: int) -> tuple[int, ...]:
    """Return widths to time, multiples of the `atom` of channels that a grouped convolution shrinks by."""
    return _thinned(tuple(atom * width for width in widths(dense // atom, max(step // atom, 1))))


def _thinned(values: tuple[int, ...]) -> tuple[int, ...]:
    """Keep the narrowest width and some shares of the dense one, where there are many."""
    if len(values) <= MOST_POINTS:
        return values
    near = [min(values, key=lambda value: abs(value - share * values[-1])) for share in SHARES]
    return tuple(sorted({values[0], *near, values[-1]}))


class Interpolation:
    """Milliseconds of many layers at any widths: bilinear within the grid, the nearest point outside."""

    def __init__(self, times: Sequence[LayerTimes], owners: Sequence[int]) -> None:
        """Lay the tables out side by side; `owners` has the number of the table of each layer."""
        rows = max([len(item.inputs) for item in times], default=1)
        columns = max([len(item.outputs) for item in times], default=1)
        self._owners = np.array(owners, dtype=int)
        self._inputs = np.full((len(times), rows), np.inf)
        self._outputs = np.full((len(times), columns), np.inf)
        self._ms = np.zeros((len(times), rows, columns))
        for number, item in enumerate(times):
            self._inputs[number, : len(item.inputs)] = item.inputs
            self._outputs[number, : len(item.outputs)] = item.outputs
            self._ms[number, : len(item.inputs), : len(item.outputs)] = item.ms

    def __call__(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Return `(…, L)` for widths `(…, L)`."""
        row, next_row, down = _position(self._inputs[self._owners], inputs)
        column, next_column, right = _position(self._outputs[self._owners], outputs)
        ms = self._ms
        here = (1 - down) * ms[self._owners, row, column] + down * ms[self._owners, next_row, column]
        beyond = (1 - down) * ms[self._owners, row, next_column] + down * ms[self._owners, next_row, next_column]
        return (1 - right) * here + right * beyond


def _position(points: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two points `(L, K)` around values `(…, L)`, as numbers, and the position between them, in [0, 1]."""
    last = np.isfinite(points).sum(1) - 1
    low = np.clip((points <= values[..., None]).sum(-1) - 1, 0, last)
    high = np.minimum(low + 1, last)
    layers = np.arange(len(points))
    start, end = points[layers, low], points[layers, high]
    share = np.clip((values - start) / np.where(end > start, end - start, 1), 0, 1)
    return low, high, np.where(end > start, share, 0.0)
