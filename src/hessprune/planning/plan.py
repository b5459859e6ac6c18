"""The plan: which units of which slices are kept, implanted and removed, and where that decision came from."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, BudgetError, CheckpointError
from hessprune.planning.budget import Budget
from hessprune.planning.cost import Cost, CostModel
from hessprune.planning.inputs import InputSpec, describe_inputs
from hessprune.planning.joint import select_jointly
from hessprune.planning.ranking import Ranking, select
from hessprune.structure.groups import Group, Literal, Slice, check_per_unit

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A complete, self-contained decision: it can be printed, saved as JSON, and applied to the dense model.

    Predicted costs are exact: `cost_after` is what `cost` counts on the pruned model.
    """

    groups: tuple[Group, ...]
    removed: Mapping[str, tuple[int, ...]]
    """Units to remove, by group name."""
    budget: Budget
    cost_before: Cost
    cost_after: Cost
    inputs: InputSpec
    """Shapes of the example inputs, with which surgery verifies itself."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Method, seed, estimator, versions: whatever is needed to make the same plan again."""

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Units that stay, by group name."""
        gone = {name: set(units) for name, units in self.removed.items()}
        return {g.name: tuple(u for u in range(g.num_units) if u not in gone.get(g.name, ())) for g in self.groups}

    @property
    def num_removed(self) -> int:
        """Number of removed units."""
        return sum(len(units) for units in self.removed.values())

    def kept_fraction(self, quantity: str) -> float:
        """Return the share of `macs`, `params`, `bytes` or `units` that is left."""
        if quantity == "units":
            return 1 - self.num_removed / max(sum(group.num_units for group in self.groups), 1)
        return getattr(self.cost_after, quantity) / max(getattr(self.cost_before, quantity), 1)

    def to_json(self) -> str:
        """Return the plan as JSON; `Plan.from_json` gives an equal plan back."""
        return json.dumps(
            {
                "format": FORMAT,
                "budget": {self.budget.quantity: self.budget.value},
                "cost_before": asdict(self.cost_before),
                "cost_after": asdict(self.cost_after),
                "inputs": self.inputs.tree,
                "provenance": dict(self.provenance),
                "removed": {name: list(units) for name, units in self.removed.items()},
                "groups": [_group_to_json(group) for group in self.groups],
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan back.

        Raises:
            CheckpointError: The text is truncated, is not a plan, or is of a newer format.
        """
        try:
            data = json.loads(text)
            if data["format"] > FORMAT:
                raise CheckpointError(
                    f"the plan has format {data['format']}, this version reads {FORMAT}. Upgrade hessprune."
                )
            return cls(
                groups=tuple(_group_from_json(item) for item in data["groups"]),
                removed={name: tuple(units) for name, units in data["removed"].items()},
                budget=Budget(**data["budget"]),
                cost_before=Cost(**data["cost_before"]),
                cost_after=Cost(**data["cost_after"]),
                inputs=InputSpec(tree=data["inputs"]),
                provenance=data["provenance"],
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the plan must be complete JSON written by hessprune, got {error!r}. Save it again."
            ) from error

    def __str__(self) -> str:
        """One line for the whole, one per group."""
        share = f"{self.kept_fraction(self.budget.quantity):.1%} of {self.budget.quantity} kept"
        head = f"{self.budget}: {self.cost_before} -> {self.cost_after} ({share}, {self.num_removed} units removed)"
        return "\n".join([
            head,
            *(f"  {g.name}: {len(self.kept[g.name])} of {g.num_units} units kept" for g in self.groups),
        ])


def make_plan(
    model: nn.Module,
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    budget: Budget,
    *,
    example_inputs: Any,
    ranking: Ranking | None = None,
) -> Plan:
    """Decide which units go so that the model meets the budget.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        saliency: Estimated loss increase of every unit: `{group name: (U,)}`. Where it carries `interactions` (methods
            `"joint"` and `"sosp-i"`), units are chosen one by one given those already chosen; else they are ranked.
        budget: What may be left.
        example_inputs: The inputs for which MACs are counted; shapes only.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.

    Returns:
        The plan with the largest cost that meets the budget along the global ranking.

    Raises:
        BudgetError: The budget is out of reach (the message says what is reachable).
        ArgumentError: Saliencies are missing, mis-shaped or not finite, or `ignored_layers` matches no group.
    """
    ranking = ranking or Ranking()
    if budget.quantity == "latency_ms":
        raise BudgetError(
            "`Budget(latency_ms=…)` needs a latency table, which this version does not measure. Use macs=."
        )
    per_unit = check_per_unit(saliency, groups, "saliency")
    ranking = _resolved(ranking, saliency)
    free = not_ignored(groups, ranking.ignored_layers)
    costs = CostModel(model, example_inputs, groups)
    interactions = getattr(saliency, "interactions", None)
    if interactions is None:
        chosen = select(free, per_unit, costs, budget=budget, ranking=ranking)
    else:
        own = _rows_of(free, groups)
        chosen = select_jointly(free, per_unit, interactions[own][:, own], costs, budget=budget, ranking=ranking)
    facts = {**getattr(saliency, "provenance", {}), "ranking": asdict(ranking), **_origin(model)}
    return _plan(costs, groups, chosen, budget, inputs=describe_inputs(example_inputs), facts=facts)


def plan_removing(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    budget: Budget,
    *,
    example_inputs: Any,
    provenance: Mapping[str, Any],
) -> Plan:
    """Return the plan that removes given units, whatever decided on them.

    Args:
        model: The dense model.
        groups: From `find_groups`.
        removed: Units to remove, by group name; groups that are absent stay whole.
        budget: What the decision was made for.
        example_inputs: The inputs for which MACs are counted; shapes only.
        provenance: Where the decision came from; JSON values.

    Returns:
        The plan, with its exact cost.
    """
    costs, facts = CostModel(model, example_inputs, groups), {**provenance, **_origin(model)}
    return _plan(costs, groups, removed, budget, inputs=describe_inputs(example_inputs), facts=facts)


def _plan(
    costs: CostModel,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    budget: Budget,
    *,
    inputs: InputSpec,
    facts: Mapping[str, Any],
) -> Plan:
    units = {group.name: tuple(sorted(removed.get(group.name, ()))) for group in groups}
    return Plan(
        groups=tuple(groups),
        removed=units,
        budget=budget,
        cost_before=costs.dense,
        cost_after=costs({name: len(gone) for name, gone in units.items()}),
        inputs=inputs,
        provenance=json.loads(json.dumps(facts)),  # as it will be read back
    )


def _origin(model: nn.Module) -> dict[str, str]:
    """Return what identifies the dense model and the software."""
    return {"weights_sha256": fingerprint(model), "torch": torch.__version__}


def _rows_of(free: Sequence[Group], groups: Sequence[Group]) -> Tensor:
    """Return which rows of a matrix over all units belong to the free groups."""
    names = {group.name for group in free}
    return torch.cat([torch.full((group.num_units,), group.name in names) for group in groups])


def _resolved(ranking: Ranking, saliency: Mapping[str, Tensor]) -> Ranking:
    """Fill in the method's own habit where `per_cost` is left open."""
    if ranking.per_cost is not None:
        return ranking
    return Ranking(**{**asdict(ranking), "per_cost": getattr(saliency, "per_cost", True)})


def not_ignored(groups: Sequence[Group], patterns: Sequence[str]) -> list[Group]:
    """Return the groups that no pattern names."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(group.name, pattern) for group in groups):
            raise ArgumentError(f"`ignored_layers` must match group names, got {pattern!r}. See `find_groups`.")
    return [group for group in groups if not any(fnmatch.fnmatchcase(group.name, pattern) for pattern in patterns)]


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over names, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _group_to_json(group: Group) -> dict[str, Any]:
    slices = [{**_fields(piece), "index": _pack(piece.index)} for piece in group.slices]
    literals = [{**_fields(item), "counts": list(item.counts)} for item in group.literals]
    return {"name": group.name, "num_units": group.num_units, "slices": slices, "literals": literals}


def _group_from_json(data: Mapping[str, Any]) -> Group:
    units = data["num_units"]
    return Group(
        name=data["name"],
        num_units=units,
        slices=tuple(Slice(**{**piece, "index": _unpack(piece["index"], units)}) for piece in data["slices"]),
        literals=tuple(Literal(**{**item, "counts": tuple(item["counts"])}) for item in data["literals"]),
    )


def _fields(value: Slice | Literal) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _pack(index: tuple[tuple[int, ...], ...]) -> Any:
    """Write consecutive positions as `{"start", "width"}`: the usual case, and it keeps the file readable."""
    width, start = len(index[0]), index[0][0]
    if all(row == tuple(range(start + u * width, start + (u + 1) * width)) for u, row in enumerate(index)):
        return {"start": start, "width": width}
    return [list(row) for row in index]


def _unpack(packed: Any, num_units: int) -> tuple[tuple[int, ...], ...]:
    if isinstance(packed, dict):
        start, width = packed["start"], packed["width"]
        return tuple(tuple(range(start + u * width, start + (u + 1) * width)) for u in range(num_units))
    return tuple(tuple(row) for row in packed)
