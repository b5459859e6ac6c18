"""Two plans in a row as one plan for the dense model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shortened, shown
from hessprune.structure.groups import Group
from hessprune.structure.remaining import remaining_groups

if TYPE_CHECKING:
    from hessprune.planning.plan import Plan

Place = tuple[str, int, int]
"""A parameter or buffer, one of its dimensions, and a position there."""
Unit = tuple[str, int]
"""A group's name, and the number of a unit in the dense model."""


def composed_fields(first: "Plan", second: "Plan") -> dict[str, Any] | None:
    """Return the fields of the plan for the dense model that does what `first` and then `second` do.

    Units are matched by their slices: a unit of `second` is the unit of `first` that owns the same positions of the
    same tensors in the pruned model. The result is None where it is a part of one: a query of the last head of keys.

    Raises:
        ArgumentError: `second` was made for another model, or `first` has implants.
    """
    _check_order(first, second)
    match = _matching(first)
    removed = {name: set(units) for name, units in first.removed.items()}
    implanted: dict[str, list[int]] = {}
    for group in second.groups:
        for unit in second.removed.get(group.name, ()):
            if (found := match(group, unit)) is None:
                return None
            removed.setdefault(found[0], set()).add(found[1])
        for unit in second.implanted.get(group.name, ()):
            if (found := match(group, unit)) is None:
                return None
            implanted.setdefault(found[0], []).append(found[1])
    return {
        "removed": {name: tuple(sorted(units)) for name, units in removed.items()},
        "implanted": {name: tuple(sorted(units)) for name, units in implanted.items()},
        "stand_ins": second.stand_ins,
        "budget": second.budget,
        "cost_after": second.cost_after,
        "provenance": _provenance(first, second),
    }


def dense_units(groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> dict[Unit, frozenset[Place]]:
    """Return for every remaining unit, by its number in the dense model, the places that it owns after surgery."""
    places = {}
    for group, remaining in zip(groups, remaining_groups(groups, removed), strict=True):
        gone = set(removed.get(group.name, ()))
        kept = [unit for unit in range(group.num_units) if unit not in gone]
        for number, unit in enumerate(kept):
            places[group.name, unit] = places_of(remaining, number)
    return places


def places_of(group: Group, unit: int) -> frozenset[Place]:
    """Return the positions of all tensors that one unit owns."""
    return frozenset((p.param, p.dim, position) for p in group.slices for position in p.index[unit])


def _matching(first: "Plan") -> Callable[[Group, int], Unit | None]:
    owners = {places: unit for unit, places in dense_units(first.groups, first.removed).items()}

    def match(group: Group, unit: int) -> Unit | None:
        owner = owners.get(places_of(group, unit))
        if owner is None and not _is_part(owners, group, unit):
            raise ArgumentError(
                f"`next_plan` must be made for the model that this plan gives, but unit {unit} of its group "
                f"{group.name!r} has other slices there. Make it with find_groups(hp.apply_plan(model, plan), …)."
            )
        return owner

    return match


def _is_part(owners: Iterable[frozenset[Place]], group: Group, unit: int) -> bool:
    """Return whether a unit, and another one of its group, lie within the places of one owner."""
    units = [places_of(group, number) for number in range(group.num_units)]
    return any(units[unit] < places and sum(each < places for each in units) > 1 for places in owners)


def _check_order(first: "Plan", second: "Plan") -> None:
    if first.implanted:
        layers = shortened([repr(layer) for layer in first.stand_ins])
        raise ArgumentError(
            f"`plan.then` must start from a plan without implants, got stand-ins in {layers}, which are layers of "
            "their own in the pruned model. Plan implants last."
        )
    check_follows(first, second)


def check_follows(first: Any, second: Any) -> None:
    """Raise unless the second of two plans or widenings was made for the model that the first one gives.

    Raises:
        ArgumentError: Its costs before are not those after the first one.
    """
    end, start = first.cost_after, second.cost_before
    if (end.macs, end.params) != (start.macs, start.params):
        wanted, given = first.inputs.shapes, second.inputs.shapes
        if end.params == start.params and wanted != given:
            raise ArgumentError(
                f"`next_plan` must be made with example inputs of the same shapes as this one, {shown(wanted)}, for "
                f"which MACs are counted, got {shown(given)}. Make it with inputs of those shapes."
            )
        is_widened, kind = hasattr(getattr(first, "last", first), "parents"), type(first).__name__.lower()
        raise ArgumentError(
            f"`next_plan` must be made for the model that this {kind} gives, on the same example "
            f"inputs, with {end.macs:,} MACs and {end.params:,} parameters, got {start.macs:,} and {start.params:,}. "
            f"Make it for {'the model that hp.widen returned' if is_widened else 'hp.apply_plan(model, plan)'}."
        )


def _provenance(first: "Plan", second: "Plan") -> dict[str, Any]:
    """Return the second plan's provenance, with the dense model's fingerprint and latency, and the plans before it."""
    facts = {key: value for key, value in first.provenance.items() if key != "earlier"}
    facts["budget"] = {first.budget.quantity: first.budget.value}
    inner = list(second.provenance.get("earlier", ()))
    result = {**second.provenance, "earlier": [*first.provenance.get("earlier", ()), facts, *inner]}
    if "weights_sha256" in first.provenance:
        result["weights_sha256"] = first.provenance["weights_sha256"]
    if "latency" in first.provenance and "latency" in second.provenance:
        dense_ms = first.provenance["latency"]["dense_ms"]
        result["latency"] = {**second.provenance["latency"], "dense_ms": dense_ms}
    return result
