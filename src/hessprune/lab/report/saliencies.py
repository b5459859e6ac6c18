"""How salient the units of a model are: the value behind `hessprune saliency`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hessprune.foundation.files import write_json

NUM_BINS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSaliencies:
    """The saliency of every unit of one group, in the units' order."""

    group: str
    values: tuple[float, ...]
    standard_error: tuple[float, ...] | None = None
    """Of each value, where the estimator is stochastic."""

    def least(self, count: int) -> list[tuple[int, float]]:
        """Return the least salient units with their values, the first to go first."""
        return sorted(enumerate(self.values), key=lambda item: item[1])[:count]

    def most(self, count: int) -> list[tuple[int, float]]:
        """Return the most salient units with their values, the last to go first."""
        return sorted(enumerate(self.values), key=lambda item: -item[1])[:count]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saliencies:
    """The saliencies of a whole model, and how they came about."""

    model: str
    method: str
    groups: tuple[GroupSaliencies, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def edges(self) -> tuple[float, ...]:
        """Edges of the histogram: `NUM_BINS` bins of equal ratio from the smallest to the largest positive value."""
        positive = [value for group in self.groups for value in group.values if value > 0] or [1.0]
        low, high = math.log10(min(positive)), math.log10(max(positive))
        step = max(high - low, 1e-9) / NUM_BINS
        return tuple(10 ** (low + number * step) for number in range(NUM_BINS + 1))

    def histogram(self, values: Sequence[float]) -> tuple[int, ...]:
        """Return how many of `values` fall into each bin; zeros count into the first."""
        edges, counts = self.edges, [0] * NUM_BINS
        for value in values:
            counts[max(0, min(NUM_BINS, sum(edge <= value for edge in edges)) - 1)] += 1
        return tuple(counts)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict, histogram included."""
        everything = [value for group in self.groups for value in group.values]
        return asdict(self) | {"histogram": {"edges": list(self.edges), "counts": list(self.histogram(everything))}}

    def save(self, path: Path | str) -> Path:
        """Write the saliencies as JSON, in one step."""
        return write_json(path, self.to_json())


def sparkline(counts: Sequence[int]) -> str:
    """Draw counts as a line of blocks, empty bins as blanks.

    Example:
        >>> sparkline([0, 1, 4, 8])
        ' ▁▄█'
    """
    top = max(max(counts, default=0), 1)
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / top)] for count in counts)
