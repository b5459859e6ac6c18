"""Bottlenecks as values: the groups of a model from the narrowest on, with the figures behind the order."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hessprune.errors import CheckpointError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.formatting import html_table, text_table

NARROW, WIDE = 0.5, 1.25
"""A group that loses less than half of the share that it would lose at random is narrow; more than 1.25 of it, wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """One group: how much of it goes at each level, and what more units would bring."""

    group: str
    """The group's name."""
    num_units: int
    removed: Mapping[float, float]
    """Share of its units that a pruning removes, by the level: the removed share of the budgeted quantity."""
    spread: Mapping[float, float]
    """Standard deviation of these shares over draws of the calibration samples."""
    relative: float
    """Mean over the levels of its removed share, divided by that of all units, both without what floors keep; below 1
    the group is spared."""
    gain: float | None = None
    """Expected decrease of the loss by one more unit, to first order, per unit of step; None if it was not measured."""
    gain_per_mac: float | None = None
    """The same, divided by the multiply-adds of a unit."""

    @property
    def verdict(self) -> str:
        """`"bottleneck"`, `"wide"`, or `"balanced"`."""
        return "bottleneck" if self.relative < NARROW else "wide" if self.relative > WIDE else "balanced"


class Bottlenecks(tuple[Bottleneck, ...]):
    """The groups of a model, the narrowest first.

    Example:
        >>> import torch, hessprune as hp
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 3), torch.nn.ReLU(), torch.nn.Linear(3, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4)
        ... )
        >>> found = hp.find_bottlenecks(net, torch.zeros(1, 6), [torch.randn(64, 6)])
        >>> [item.group for item in found], type(found).from_json(found.to_json()) == found
        (['0', '2'], True)
    """

    facts: Mapping[str, Any]
    """Method, budgeted quantity, levels and draws."""

    def __new__(cls, items: Iterable[Bottleneck] = (), facts: Mapping[str, Any] | None = None) -> "Bottlenecks":
        """Build the tuple and attach the facts."""
        self = super().__new__(cls, items)
        self.facts = dict(facts or {})
        return self

    @property
    def narrow(self) -> tuple[Bottleneck, ...]:
        """The groups whose verdict is `"bottleneck"`."""
        return tuple(item for item in self if item.verdict == "bottleneck")

    def blocks(self) -> dict[str, float]:
        """Return the relative removed share of each block, the narrowest first: units of one parent module together."""
        parts: dict[str, list[Bottleneck]] = {}
        for item in self:
            parts.setdefault(item.group.rpartition(".")[0] or item.group, []).append(item)
        shares = {
            name: sum(item.relative * item.num_units for item in items) / sum(item.num_units for item in items)
            for name, items in parts.items()
        }
        return dict(sorted(shares.items(), key=lambda entry: entry[1]))

    def to_json(self) -> str:
        """Return the figures as JSON; `Bottlenecks.from_json` gives equal ones back."""
        return json.dumps({"facts": dict(self.facts), "groups": [asdict(item) for item in self]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Bottlenecks":
        """Read figures back.

        Raises:
            CheckpointError: The text is truncated, or holds other values.
        """
        try:
            data = json.loads(text)
            items = [Bottleneck(**item | _numbers(item)) for item in data["groups"]]
            return cls(items, data["facts"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"bottlenecks must be complete JSON written by hessprune, got {type(error).__name__}. Find them again."
            ) from error

    def table(self) -> str:
        """Return one line for each group."""
        return text_table(*self._columns())

    def plot(self) -> Any:
        """Draw the widths of the network from input to output, with bottlenecks marked and the removed shares within.

        Returns:
            A matplotlib figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        order = self.facts.get("order") or [item.group for item in self]
        items = sorted(self, key=lambda item: order.index(item.group))
        level = max(items[0].removed) if items else 0.0
        figure = optional_import("matplotlib.figure", "report").Figure(
            figsize=(7, 1.2 + 0.24 * len(items)), layout="constrained"
        )
        axes, places = figure.add_subplot(), range(len(items))
        widths = [item.num_units for item in items]
        colours = {"bottleneck": "#c0392b", "balanced": "#7f8c8d", "wide": "#2e86c1"}
        axes.barh(places, widths, left=[-width / 2 for width in widths], color="#e5e7e9", height=0.8)
        kept = [item.num_units * (1 - item.removed[level]) for item in items]
        axes.barh(
            places, kept, left=[-k / 2 for k in kept], color=[colours[item.verdict] for item in items], height=0.8
        )
        for place, item, stays in zip(places, items, kept, strict=True):
            axes.text(0, place, f"{stays:.0f} of {item.num_units}", ha="center", va="center", fontsize=7, color="white")
        axes.set_yticks(places, [item.group for item in items], fontsize=8)
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
        axes.set_xlabel(f"units from input (top) to output; in colour those that stay when {level:.0%} go", fontsize=8)
        patches = optional_import("matplotlib.patches", "report")
        handles = [patches.Patch(color=colour, label=name) for name, colour in colours.items()]
        axes.legend(handles=handles, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        return figure

    def __str__(self) -> str:
        """Return the narrowest groups in at most five lines."""
        lines = [repr(self)]
        for item in self[:3]:
            shares = ", ".join(f"{share:.0%} of it at {level:.0%}" for level, share in item.removed.items())
            lines.append(f"{item.group} ({item.num_units} units, {item.verdict}): {shares}")
        if self.facts.get("out_of_reach"):
            lines.append("out of reach: " + ", ".join(f"{level:.0%}" for level in self.facts["out_of_reach"]))
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return the numbers of groups and of bottlenecks."""
        return f"Bottlenecks({len(self.narrow)} of {len(self)} groups are narrow)"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        return html_table(*self._columns(), repr(self))

    def _columns(self) -> tuple[list[str], list[list[object]]]:
        levels = list(self[0].removed) if self else []
        head = ["group", "units", *(f"removed at {level:.0%}" for level in levels), "relative", "gain", "verdict"]
        rows: list[list[object]] = []
        for item in self:
            shares = [f"{item.removed[level]:.0%} ± {item.spread[level]:.0%}" for level in levels]
            gain = "" if item.gain is None or math.isnan(item.gain) else f"{item.gain:.2e}"
            rows.append([item.group, item.num_units, *shares, f"{item.relative:.2f}", gain, item.verdict])
        return head, rows


def _numbers(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a group as numbers."""
    levels = {key: _by_level(item[key]) for key in ("removed", "spread")}
    return {"num_units": int(item["num_units"]), "relative": float(item["relative"]), **levels}


def _by_level(values: Mapping[str, float]) -> dict[float, float]:
    return {float(level): float(value) for level, value in values.items()}
