"""Planning: from groups, saliencies and a budget to a plan."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.costs.budget import Budget, check_budget, latency_table_of
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError
from hessprune.foundation.arrival import arrived
from hessprune.foundation.formatting import shown
from hessprune.foundation.hashing import weights_sha256
from hessprune.foundation.symmetric import as_symmetric
from hessprune.planning.implants import Implant, ImplantShare, as_implant, carrying_layers, check_no_stand_ins
from hessprune.planning.inputs import describe_inputs
from hessprune.planning.joint import select_jointly
from hessprune.planning.plan import Plan
from hessprune.planning.ranking import Ranking, check_at_once, check_ranking, counting, free_groups, select
from hessprune.planning.steps import select_in_steps
from hessprune.planning.uniform import select_uniformly
from hessprune.planning.zones import Zones, select_zones
from hessprune.structure.belonging import check_groups
from hessprune.structure.carriers import stand_in_layers
from hessprune.structure.groups import Group, check_per_unit
from hessprune.structure.queries import check_queries


@torch.inference_mode(False)
def make_plan(
    model: nn.Module,
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    budget: Budget,
    *,
    example_inputs: Any,
    ranking: Ranking | None = None,
    implant: float | Implant = 0.0,
) -> Plan:
    """Decide which units go, and which keep a stand-in, so that the model meets the budget.

    Cost: no run of the model. Without interactions, `U` units are sorted; with them, a removal takes `O(U)`.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        saliency: Estimated loss increase of every unit: `{group name: (U,)}`. Where it carries `interactions` (methods
            `"joint"` and `"sosp-i"`), units are chosen one by one given those already chosen; else they are ranked.
        budget: The bound; with `latency_ms`, its `target` must be a latency table.
        example_inputs: The inputs for which MACs are counted; shapes only.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.
        implant: Share of the units that leave the full zone which keep a low-rank stand-in, the most salient of them;
            or an `Implant` with its form.

    Returns:
        The plan with the largest cost that meets the budget along the global ranking.

    Raises:
        BudgetError: The budget is out of reach (the message says what is reachable), is no `Budget`, or bounds time
            without a table.
        ArgumentError: Groups are those of another model, saliencies are missing, mis-shaped or not finite, `ranking`
            names unknown groups, asks for several steps or for queries that the groups do not hold, or implants are
            asked for where no layer can hold one, or together with a budget of time.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> saliency = {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, hp.find_groups(net, x), saliency, hp.Budget(macs=0.5), example_inputs=x)
        >>> print(plan)
        Budget(macs=0.5): 50.0% of macs kept
        48 MACs, 58 parameters, 232 B -> 24 MACs, 30 parameters, 120 B
        4 of 8 units removed, in 1 group
    """
    check_budget(budget)
    model = arrived(model)
    groups = check_groups(model, groups, some=True)
    ranking = _resolved(check_ranking(ranking, groups), saliency)
    check_queries(groups, ranking.gqa)
    per_unit = check_per_unit(saliency, groups, "saliency")
    unseen = set(getattr(saliency, "unseen", ()))
    free = _seen(free_groups(groups, ranking), unseen)
    implant = as_implant(implant)
    check_no_stand_ins(implant, budget)
    carriers = carrying_layers(model, free, example_inputs, implant)
    costs = CostModel(model, example_inputs, groups, _layers(carriers, implant.rank), latency_table_of(budget))
    free = counting(free, costs, budget)
    implants = ImplantShare(share=implant.share, groups=carriers.keys()) if implant else None
    interactions = getattr(saliency, "interactions", None)
    if ranking.uniform:
        _check_no_implants(implants)
        chosen = select_uniformly(free, per_unit, costs, budget=budget, ranking=ranking)
        zones = Zones(removed=chosen, implanted={})
    elif interactions is not None:
        pairwise = as_symmetric(interactions).select(_rows_of(free, groups))
        zones = select_jointly(free, per_unit, pairwise, costs, budget=budget, ranking=ranking, implants=implants)
    elif implants:
        zones = select_zones(free, per_unit, costs, budget=budget, ranking=ranking, implants=implants)
    else:
        choose = select_in_steps if budget.is_latency else select
        zones = Zones(removed=choose(free, per_unit, costs, budget=budget, ranking=ranking), implanted={})
    facts = {**getattr(saliency, "provenance", {}), "ranking": ranking.to_json()}
    facts |= {"implant": asdict(implant)} if implant else {}
    stand_ins = _layers({name: carriers[name] for name, units in zones.implanted.items() if units}, implant.rank)
    return _plan(model, costs, groups, zones, budget, inputs=example_inputs, facts=facts, stand_ins=stand_ins)


def _seen(groups: Sequence[Group], unseen: Collection[str]) -> list[Group]:
    """Return the groups that a method has seen at work.

    Raises:
        ArgumentError: It has seen none.
    """
    found = [group for group in groups if group.name not in unseen]
    if groups and not found:
        raise ArgumentError(
            f"`saliency` must hold a group that the outputs in question depend on, got {shown([*unseen])} alone. "
            "Ignore fewer layers, or choose by method='magnitude'."
        )
    return found


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
) -> Plan:
    """Return the plan that removes (and implants) the units of a decision that was made elsewhere.

    Args:
        model: The dense model.
        groups: From `find_groups`.
        removed: Units to remove, by group name; groups that are absent stay whole.
        budget: The bound that the decision was made for; a latency table as its `target` predicts the time.
        example_inputs: The inputs for which MACs are counted; shapes only.
        provenance: The origin of the decision; JSON values.
        implanted: Units to implant, by group name.
        stand_ins: The layers that hold their stand-ins, each with its rank; all that can, with 1×1 filters, if None.

    Returns:
        The plan, with its exact cost.
    """
    implanted = {name: tuple(sorted(units)) for name, units in (implanted or {}).items() if units}
    if stand_ins is None:
        changed = [group for group in groups if group.name in implanted]
        stand_ins = _layers(stand_in_layers(model, changed, example_inputs), None) if changed else {}
    costs = CostModel(model, example_inputs, groups, stand_ins, latency_table_of(budget))
    zones = Zones(removed={name: tuple(units) for name, units in removed.items()}, implanted=implanted)
    return _plan(model, costs, groups, zones, budget, inputs=example_inputs, facts=provenance, stand_ins=stand_ins)


def _plan(
    model: nn.Module,
    costs: CostModel,
    groups: Sequence[Group],
    zones: Zones,
    budget: Budget,
    *,
    inputs: Any,
    facts: Mapping[str, Any],
    stand_ins: Mapping[str, int | None],
) -> Plan:
    removed = {group.name: tuple(sorted(zones.removed.get(group.name, ()))) for group in groups}
    implanted = {name: units for name, units in zones.implanted.items() if units}
    counts = [{name: len(units) for name, units in zone.items()} for zone in (removed, implanted)]
    provenance = {**facts, "weights_sha256": weights_sha256(model), "torch": torch.__version__}
    if costs.latency is not None:
        provenance["latency"] = costs.latency.facts(counts[0])
    return Plan(
        groups=tuple(groups),
        removed=removed,
        budget=budget.without_target(),
        cost_before=costs.dense,
        cost_after=costs(*counts),
        inputs=describe_inputs(inputs),
        provenance=json.loads(json.dumps(provenance)),  # as it will be read back
        implanted=implanted,
        stand_ins=stand_ins,
        shapes=_shapes(model, groups),
    )


def _shapes(model: nn.Module, groups: Sequence[Group]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors that groups have slices of."""
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    names = dict.fromkeys(piece.param for group in groups for piece in group.slices)
    return {name: tuple(state[name].shape) for name in names}


def _layers(carriers: Mapping[str, Sequence[str]], rank: int | None) -> dict[str, int | None]:
    """Return all layers with stand-ins, and their rank."""
    return {layer: rank for layers in carriers.values() for layer in layers}


def _rows_of(free: Sequence[Group], groups: Sequence[Group]) -> Tensor:
    """Return which rows of a matrix over all units belong to the free groups, as a mask."""
    names = {group.name for group in free}
    return torch.cat([torch.full((group.num_units,), group.name in names, device="cpu") for group in groups])


def _check_no_implants(implants: ImplantShare | None) -> None:
    """Raise where implants are asked for beside the same number of units in every layer.

    Raises:
        ArgumentError: They are.
    """
    if implants:
        raise ArgumentError(
            "`implant` must be 0 beside ranking.uniform=True, for no configuration says it, got "
            f"{implants.share:g}. Leave one of both out."
        )


def _resolved(ranking: Ranking, saliency: Mapping[str, Tensor]) -> Ranking:
    """Return the ranking with the method's own habit where `per_cost` is open.

    Raises:
        ArgumentError: It asks for several steps.
    """
    check_at_once(ranking)
    return ranking if ranking.per_cost is not None else replace(ranking, per_cost=getattr(saliency, "per_cost", True))
