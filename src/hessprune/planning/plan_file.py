"""Plans as JSON text: writing, and reading with checks of every value."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hessprune.costs.budget import Budget
from hessprune.errors import CheckpointError
from hessprune.foundation.formatting import shown
from hessprune.planning.inputs import InputSpec, check_tree
from hessprune.planning.packing import check_apart, group_from_json, group_to_json, is_count, require
from hessprune.planning.reading import incomplete, read_cost, read_shapes, read_units
from hessprune.structure.groups import Group

if TYPE_CHECKING:
    from hessprune.planning.plan import Plan

FORMAT = 3
"""Format 2 has implants, format 3 budgets in time or percent; a plan is written in the lowest format that holds it."""

HIGHEST_RANK = 1024
"""Of stand-ins in any layer; larger layers may have a higher one."""


def plan_to_json(plan: "Plan") -> str:
    """Return a plan as JSON text."""
    return json.dumps(
        {
            "format": _format(plan),
            "budget": {plan.budget.quantity: plan.budget.value},
            "cost_before": asdict(plan.cost_before),
            "cost_after": asdict(plan.cost_after),
            "inputs": plan.inputs.tree,
            "provenance": dict(plan.provenance),
            "removed": {name: list(units) for name, units in plan.removed.items()},
            "implanted": {name: list(units) for name, units in plan.implanted.items()},
            "stand_ins": dict(plan.stand_ins),
            "shapes": {name: list(shape) for name, shape in plan.shapes.items()},
            "groups": [group_to_json(group) for group in plan.groups],
        },
        indent=1,
    )


def plan_fields(text: str) -> dict[str, Any]:
    """Read the fields of a plan from JSON text.

    Raises:
        CheckpointError: The text is truncated, is not a plan, holds an impossible value, or is of a newer format.
    """
    try:
        data = json.loads(text)
        if data["format"] > FORMAT:
            raise CheckpointError(
                f"the plan has format {shown(data['format'])}, this version reads {FORMAT}. Upgrade hessprune."
            )
        require(is_count(data["format"]), f"the format {shown(data['format'])}")
        groups = tuple(group_from_json(item) for item in data["groups"])
        check_apart(groups)
        fields = {
            "groups": groups,
            "removed": read_units(data["removed"], groups),
            "budget": _budget(data["budget"], data["format"]),
            "cost_before": read_cost(data["cost_before"]),
            "cost_after": read_cost(data["cost_after"]),
            "inputs": InputSpec(tree=check_tree(data["inputs"])),
            "provenance": dict(data["provenance"]),
            "implanted": read_units(data.get("implanted", {}), groups),
            "shapes": read_shapes(data.get("shapes", {}), groups),
        }
        fields["stand_ins"] = _stand_ins(data.get("stand_ins", {}), groups, fields["implanted"], fields["shapes"])
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(incomplete(error)) from error
    for group in groups:
        removed, implanted = (set(fields[zone].get(group.name, ())) for zone in ("removed", "implanted"))
        both = sorted(removed & implanted)
        require(not both, f"units {both[:4]} of group {shown(group.name)} both removed and implanted")
        require(len(removed) < group.num_units, f"all units of group {shown(group.name)} removed")
    return fields


def _format(plan: "Plan") -> int:
    if plan.budget.is_latency or isinstance(plan.budget.value, str):
        return 3
    return 2 if plan.implanted else 1


def _budget(data: Mapping[str, Any], version: int) -> Budget:
    """Return the budget; before format 3 a time of at most 1 was a share, and microseconds had a name of their own."""
    ((quantity, value),) = data.items()
    if version < 3 and quantity in ("latency_ms", "latency_us"):
        if value <= 1:
            return Budget.keeping("latency_ms", value)
        return Budget(latency_ms=value / 1000 if quantity == "latency_us" else value)
    return Budget(**{quantity: value})


def _stand_ins(
    data: Mapping[str, Any],
    groups: tuple[Group, ...],
    implanted: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, int | None]:
    """Return the layers with stand-ins, each with its rank; all of them emit implanted units."""
    carriers = {s.param for g in groups if implanted.get(g.name) for s in g.slices_with_role("producer") if s.dim == 0}
    for layer, rank in data.items():
        shape = shapes.get(f"{layer}.weight", (HIGHEST_RANK,))
        highest = max(HIGHEST_RANK, shape[0], math.prod(shape[1:]))
        require(rank is None or (is_count(rank) and 0 < rank <= highest), "impossible ranks")
        require(f"{layer}.weight" in carriers, f"stand-ins in {shown(layer)}, which emits no implanted units")
    return dict(data)
