"""The plan: the units of every group that are kept, implanted and removed, and the provenance of that decision."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hessprune.costs.budget import Budget
from hessprune.costs.model import Cost
from hessprune.planning import chain, plan_views
from hessprune.planning.composition import composed_fields
from hessprune.planning.inputs import InputSpec
from hessprune.planning.plan_file import plan_fields, plan_to_json
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A complete, self-contained decision: it can be printed, saved as JSON, and applied to the dense model.

    Predicted costs are exact: `cost_after` is the result of `cost` on the pruned model.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(macs=0.5), example_inputs=x)
        >>> plan.removed, plan.kept_fraction("macs"), hp.Plan.from_json(plan.to_json()) == plan
        ({'0': (0, 1, 2, 3)}, 0.5, True)
    """

    groups: tuple[Group, ...]
    """The prunable groups of the dense model."""
    removed: Mapping[str, tuple[int, ...]]
    """Units to remove, by group name."""
    budget: Budget
    """The bound, without the latency table that it was met with."""
    cost_before: Cost
    """Of the dense model, for the example inputs."""
    cost_after: Cost
    """Of the pruned one."""
    inputs: InputSpec
    """Shapes of the example inputs, on which surgery verifies itself."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Method, seed, estimator, versions: all that is needed to make the same plan again."""
    implanted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Units that keep a low-rank stand-in, by group name."""
    stand_ins: Mapping[str, int | None] = field(default_factory=dict)
    """Layers that hold the stand-ins, each with its rank (None: 1×1 filters)."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the dense tensors that groups have slices of; plans of earlier versions have none."""

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Units that stay whole, by group name."""
        leaving = {g.name: {*self.removed.get(g.name, ()), *self.implanted.get(g.name, ())} for g in self.groups}
        return {g.name: tuple(u for u in range(g.num_units) if u not in leaving[g.name]) for g in self.groups}

    @property
    def num_removed(self) -> int:
        """Number of removed units."""
        return sum(len(units) for units in self.removed.values())

    @property
    def num_implanted(self) -> int:
        """Number of units that keep a stand-in."""
        return sum(len(units) for units in self.implanted.values())

    @property
    def shapes_after(self) -> dict[str, tuple[int, ...]]:
        """Shapes in the pruned model of the tensors of `shapes`; a layer with stand-ins counts as one tensor."""
        gone: dict[tuple[str, int], set[int]] = {}
        for group in self.groups:
            for piece in group.slices:
                places = gone.setdefault((piece.param, piece.dim), set())
                places.update(position for unit in self.removed.get(group.name, ()) for position in piece.index[unit])
        return {
            name: tuple(size - len(gone.get((name, dim), ())) for dim, size in enumerate(shape))
            for name, shape in self.shapes.items()
        }

    def kept_fraction(self, quantity: str) -> float:
        """Return the kept share of `macs`, `params`, `bytes`, `units`, `kv_cache`, or, predicted, of `latency_ms`."""
        if quantity == "latency_ms":
            facts = self.provenance["latency"]
            return facts["predicted_ms"] / facts["dense_ms"]
        if quantity == "units":
            return 1 - self.num_removed / max(sum(group.num_units for group in self.groups), 1)
        return getattr(self.cost_after, quantity) / max(getattr(self.cost_before, quantity), 1)

    def then(self, next_plan: "chain.Change") -> "chain.Chain | Plan":
        """Return the one plan for the dense model that does what this plan and then `next_plan` do.

        Units are matched by their slices, so the groups of `next_plan` may be found anew on the pruned model, also
        after training. The budget is that of `next_plan`, `cost_before` that of this plan; the provenance of this plan
        is kept under `earlier`. A share of time refers to the dense model where both plans know their latency, else to
        the model between them.

        Args:
            next_plan: Made for the model that this plan gives, on the same example inputs; or a widening of it.

        Returns:
            A plan with `apply_plan(dense, plan.then(next_plan))` equal to both plans applied in turn; before a widening
            a `Chain` of both, and before a plan whose units are parts of those here: queries of the last head of keys.

        Raises:
            ArgumentError: `next_plan` was made for another model, or this plan has implants.

        Example:
            >>> import torch, hessprune as hp
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> x = torch.zeros(1, 4)
            >>> def plan_for(model, units):
            ...     groups, saliency = hp.find_groups(model, x), {"0": torch.arange(float(units))}
            ...     return hp.make_plan(model, groups, saliency, hp.Budget(units=0.5), example_inputs=x)
            >>> first = plan_for(net, 8)
            >>> both = first.then(plan_for(hp.apply_plan(net, first), 4))
            >>> both.kept
            {'0': (6, 7)}
        """
        composed = composed_fields(self, next_plan) if isinstance(next_plan, Plan) else None
        return chain.joined(self, next_plan) if composed is None else replace(self, **composed)

    def to_json(self) -> str:
        """Return the plan as JSON; `Plan.from_json` gives an equal plan back."""
        return plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan back.

        Raises:
            CheckpointError: The text is truncated, is not a plan, holds impossible units or positions, or is of a newer
                format.
        """
        return cls(**plan_fields(text))

    def table(self) -> str:
        """Return one line for each group: its units, and how many of them are kept and implanted."""
        return plan_views.table(self)

    def plot(self) -> Any:
        """Draw one bar for each group with its kept, implanted and removed units.

        Returns:
            A matplotlib figure.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        return plan_views.bars(self)

    def __str__(self) -> str:
        """Return budget, costs and numbers of units in three lines."""
        return plan_views.summary(self)

    def __repr__(self) -> str:
        """Return one line."""
        return plan_views.one_line(self)

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows."""
        return plan_views.as_html(self)
