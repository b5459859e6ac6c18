"""The plan: which units of which slices are kept, implanted and removed, and where that decision came from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.costs.budget import LATENCY, Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.model import Cost, CostModel
from hessprune.errors import CheckpointError
from hessprune.foundation.symmetric import as_interactions
from hessprune.planning.implants import Implant, Share, as_implant, check_no_stand_ins, implant_options
from hessprune.planning.inputs import InputSpec, describe_inputs
from hessprune.planning.joint import select_jointly
from hessprune.planning.packing import group_from_json, group_to_json
from hessprune.planning.ranking import Ranking, not_ignored, select
from hessprune.planning.steps import select_in_steps
from hessprune.planning.zones import Zones, select_zones
from hessprune.structure.carriers import stand_in_layers
from hessprune.structure.groups import Group, check_per_unit

FORMAT = 2
"""Plans without implants are written as format 1, which older versions read too."""


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
    implanted: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Units that keep a low-rank stand-in, by group name."""
    stand_ins: Mapping[str, int | None] = field(default_factory=dict)
    """Layers in which they have it, each with its rank (None: 1×1 filters)."""

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Units that stay whole, by group name."""
        left = {name: {*self.removed.get(name, ()), *self.implanted.get(name, ())} for name in self._names}
        return {g.name: tuple(u for u in range(g.num_units) if u not in left[g.name]) for g in self.groups}

    @property
    def num_removed(self) -> int:
        """Number of removed units."""
        return sum(len(units) for units in self.removed.values())

    @property
    def num_implanted(self) -> int:
        """Number of units that keep a stand-in."""
        return sum(len(units) for units in self.implanted.values())

    @property
    def _names(self) -> list[str]:
        return [group.name for group in self.groups]

    def kept_fraction(self, quantity: str) -> float:
        """Return the share of `macs`, `params`, `bytes` or `units` that is left, or, as predicted, of `latency_ms`."""
        if quantity in LATENCY:
            facts = self.provenance["latency"]
            return facts["predicted_ms"] / facts["dense_ms"]
        if quantity == "units":
            return 1 - self.num_removed / max(sum(group.num_units for group in self.groups), 1)
        return getattr(self.cost_after, quantity) / max(getattr(self.cost_before, quantity), 1)

    def to_json(self) -> str:
        """Return the plan as JSON; `Plan.from_json` gives an equal plan back."""
        return json.dumps(
            {
                "format": FORMAT if self.implanted else 1,
                "budget": {self.budget.quantity: self.budget.value},
                "cost_before": asdict(self.cost_before),
                "cost_after": asdict(self.cost_after),
                "inputs": self.inputs.tree,
                "provenance": dict(self.provenance),
                "removed": {name: list(units) for name, units in self.removed.items()},
                "implanted": {name: list(units) for name, units in self.implanted.items()},
                "stand_ins": dict(self.stand_ins),
                "groups": [group_to_json(group) for group in self.groups],
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
                groups=tuple(group_from_json(item) for item in data["groups"]),
                removed={name: tuple(units) for name, units in data["removed"].items()},
                budget=Budget(**data["budget"]),
                cost_before=Cost(**data["cost_before"]),
                cost_after=Cost(**data["cost_after"]),
                inputs=InputSpec(tree=data["inputs"]),
                provenance=data["provenance"],
                implanted={name: tuple(units) for name, units in data.get("implanted", {}).items()},
                stand_ins=data.get("stand_ins", {}),
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the plan must be complete JSON written by hessprune, got {error!r}. Save it again."
            ) from error

    def __str__(self) -> str:
        """One line for the whole, one per group."""
        share = f"{self.kept_fraction(self.budget.quantity):.1%} of {self.budget.quantity} kept"
        zones = f"{self.num_removed} units removed" + (f", {self.num_implanted} implanted" if self.implanted else "")
        kept = self.kept
        lines = [f"{self.budget}: {self.cost_before} -> {self.cost_after} ({share}, {zones})"]
        for group in self.groups:
            implanted = len(self.implanted.get(group.name, ()))
            also = f", {implanted} implanted" if implanted else ""
            lines.append(f"  {group.name}: {len(kept[group.name])} of {group.num_units} units kept{also}")
        return "\n".join(lines)


def make_plan(
    model: nn.Module,
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    budget: Budget,
    *,
    example_inputs: Any,
    ranking: Ranking | None = None,
    implant: Share | Implant = 0.0,
    latency: LatencyTable | None = None,
) -> Plan:
    """Decide which units go, and which keep a stand-in, so that the model meets the budget.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        saliency: Estimated loss increase of every unit: `{group name: (U,)}`. Where it carries `interactions` (methods
            `"joint"` and `"sosp-i"`), units are chosen one by one given those already chosen; else they are ranked.
        budget: What may be left.
        example_inputs: The inputs for which MACs are counted; shapes only.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.
        implant: Share of the units that leave the full zone which keep a low-rank stand-in, the most salient of them;
            `"auto"` decides unit by unit and needs a saliency from `implant_losses`; or an `Implant` with its form.
        latency: For a budget of time, what predicts it: see `latency_table`.

    Returns:
        The plan with the largest cost that meets the budget along the global ranking.

    Raises:
        BudgetError: The budget is out of reach (the message says what is reachable).
        ArgumentError: Saliencies are missing, mis-shaped or not finite, `ignored_layers` matches no group, or implants
            are asked for where no layer can have them, or together with a budget of time.
    """
    ranking = ranking or Ranking()
    per_unit = check_per_unit(saliency, groups, "saliency")
    ranking = _resolved(ranking, saliency)
    free = not_ignored(groups, ranking.ignored_layers)
    implant = as_implant(implant)
    check_no_stand_ins(implant, budget)
    carriers = stand_in_layers(model, free, example_inputs, rank=implant.rank) if implant else {}
    costs = CostModel(model, example_inputs, groups, _layers(carriers, implant.rank), latency)
    options = None
    if implant:
        losses = getattr(saliency, "implant_losses", None)
        options = implant_options(free, per_unit, losses, costs, budget=budget, carriers=carriers, share=implant.share)
    interactions = getattr(saliency, "interactions", None)
    if interactions is not None:
        pairwise = as_interactions(interactions).select(_rows_of(free, groups))
        zones = select_jointly(free, per_unit, pairwise, costs, budget=budget, ranking=ranking, options=options)
    elif options:
        zones = select_zones(free, per_unit, costs, budget=budget, ranking=ranking, options=options)
    else:
        choose = select_in_steps if budget.is_latency else select
        zones = Zones(removed=choose(free, per_unit, costs, budget=budget, ranking=ranking), implanted={})
    facts = {**getattr(saliency, "provenance", {}), "ranking": asdict(ranking), **_origin(model)}
    facts |= {"implant": asdict(implant)} if implant else {}
    stand_ins = _layers({name: carriers[name] for name, units in zones.implanted.items() if units}, implant.rank)
    return _plan(costs, groups, zones, budget, inputs=describe_inputs(example_inputs), facts=facts, stand_ins=stand_ins)


def plan_removing(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    budget: Budget,
    *,
    example_inputs: Any,
    provenance: Mapping[str, Any],
    implanted: Mapping[str, Sequence[int]] | None = None,
    stand_ins: Mapping[str, int | None] | None = None,
    latency: LatencyTable | None = None,
) -> Plan:
    """Return the plan that removes (and implants) given units, whatever decided on them.

    Args:
        model: The dense model.
        groups: From `find_groups`.
        removed: Units to remove, by group name; groups that are absent stay whole.
        budget: What the decision was made for.
        example_inputs: The inputs for which MACs are counted; shapes only.
        provenance: Where the decision came from; JSON values.
        implanted: Units to implant, by group name.
        stand_ins: The layers that hold their stand-ins, each with its rank; all that can, with 1×1 filters, if None.
        latency: What predicts the time of the model that is left.

    Returns:
        The plan, with its exact cost.
    """
    implanted = {name: tuple(sorted(units)) for name, units in (implanted or {}).items() if units}
    if stand_ins is None:
        own = [group for group in groups if group.name in implanted]
        stand_ins = _layers(stand_in_layers(model, own, example_inputs), None) if own else {}
    costs = CostModel(model, example_inputs, groups, stand_ins, latency)
    zones = Zones(removed={name: tuple(units) for name, units in removed.items()}, implanted=implanted)
    inputs, facts = describe_inputs(example_inputs), {**provenance, **_origin(model)}
    return _plan(costs, groups, zones, budget, inputs=inputs, facts=facts, stand_ins=stand_ins)


def _plan(
    costs: CostModel,
    groups: Sequence[Group],
    zones: Zones,
    budget: Budget,
    *,
    inputs: InputSpec,
    facts: dict[str, Any],
    stand_ins: Mapping[str, int | None],
) -> Plan:
    removed = {group.name: tuple(sorted(zones.removed.get(group.name, ()))) for group in groups}
    implanted = {name: units for name, units in zones.implanted.items() if units}
    counts = [{name: len(units) for name, units in zone.items()} for zone in (removed, implanted)]
    timing = {} if costs.latency is None else {"latency": costs.latency.facts(counts[0])}
    return Plan(
        groups=tuple(groups),
        removed=removed,
        budget=budget,
        cost_before=costs.dense,
        cost_after=costs(*counts),
        inputs=inputs,
        provenance=json.loads(json.dumps(facts | timing)),  # as it will be read back
        implanted=implanted,
        stand_ins=stand_ins,
    )


def _layers(carriers: Mapping[str, Sequence[str]], rank: int | None) -> dict[str, int | None]:
    """Return all layers with stand-ins, and their rank."""
    return {layer: rank for layers in carriers.values() for layer in layers}


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


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over names, shapes and values of a model's state."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
