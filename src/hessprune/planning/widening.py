"""The widening: units that are put beside others of the same group, as a value that is saved like a plan."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hessprune.costs.model import Cost
from hessprune.foundation.formatting import counted, shortened
from hessprune.planning import chain
from hessprune.planning.inputs import InputSpec
from hessprune.planning.reading import parsed
from hessprune.planning.widening_file import shapes_after, widening_fields, widening_values
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Widening:
    """New units of a model, each beside an old one: what `hp.widen` did, for `hp.save`, `hp.load` and `then`.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> widening = hp.widen(net, torch.zeros(1, 4), {"0": 10}).plan
        >>> widening.widths, hp.Widening.from_json(widening.to_json()) == widening
        ({'0': 10}, True)
    """

    groups: tuple[Group, ...]
    """The groups of the widened model."""
    added: Mapping[str, tuple[int, ...]]
    """New units by group name, numbered in the widened model."""
    parents: Mapping[str, tuple[int, ...]]
    """The old unit beside which each of them stands."""
    cost_before: Cost
    """Of the model that came, for the example inputs."""
    cost_after: Cost
    """Of the wider one."""
    inputs: InputSpec
    """Shapes of the example inputs."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes before, of the tensors that groups have slices of."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Start of the new units, and the seed."""

    @property
    def widths(self) -> dict[str, int]:
        """Number of units afterwards, by name of each widened group."""
        return {group.name: group.num_units for group in self.groups if self.added.get(group.name)}

    @property
    def num_added(self) -> int:
        """Number of new units."""
        return sum(len(units) for units in self.added.values())

    @property
    def stand_ins(self) -> dict[str, int | None]:
        """No layer holds stand-ins."""
        return {}

    @property
    def shapes_after(self) -> dict[str, tuple[int, ...]]:
        """Shapes in the widened model of the tensors of `shapes`."""
        return shapes_after({"groups": self.groups, "added": self.added, "shapes": self.shapes})

    def then(self, next_change: "chain.Change") -> "chain.Chain":
        """Return this widening and then a plan, or another widening, as one value for `hp.save`.

        Raises:
            ArgumentError: It was made for another model than the one that this widening gives.
        """
        return chain.joined(self, next_change)

    def to_json(self) -> str:
        """Return the widening as JSON; `Widening.from_json` gives an equal one back."""
        return json.dumps(widening_values(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Widening":
        """Read a widening back.

        Raises:
            CheckpointError: The text is truncated, is no widening, or holds impossible units or positions.
        """
        return cls(**widening_fields(parsed(text)))

    def __str__(self) -> str:
        """Return the costs, the numbers of units and the widest groups in three lines."""
        grown = [f"{name} {width - len(self.added[name])} → {width}" for name, width in self.widths.items()]
        return "\n".join([repr(self), f"{self.cost_before} -> {self.cost_after}", f"units: {shortened(grown)}"])

    def __repr__(self) -> str:
        """Return one line."""
        return f"Widening({counted(self.num_added, 'new unit')} in {counted(len(self.added), 'group')})"
