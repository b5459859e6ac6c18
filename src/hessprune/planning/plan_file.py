"""Plans as JSON text: writing, and reading with checks of every value."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hessprune.costs.budget import Budget
from hessprune.costs.model import Cost
from hessprune.errors import CheckpointError
from hessprune.planning.inputs import InputSpec, check_tree
from hessprune.planning.packing import group_from_json, group_to_json, is_count, require
from hessprune.structure.groups import Group

if TYPE_CHECKING:
    from hessprune.planning.plan import Plan

FORMAT = 3
"""Format 2 has implants, format 3 budgets in time or percent; a plan is written in the lowest format that holds it."""


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
                f"the plan has format {data['format']}, this version reads {FORMAT}. Upgrade hessprune."
            )
        groups = tuple(group_from_json(item) for item in data["groups"])
        fields = {
            "groups": groups,
            "removed": _units(data["removed"], groups),
            "budget": _budget(data["budget"], data["format"]),
            "cost_before": _cost(data["cost_before"]),
            "cost_after": _cost(data["cost_after"]),
            "inputs": InputSpec(tree=check_tree(data["inputs"])),
            "provenance": dict(data["provenance"]),
            "implanted": _units(data.get("implanted", {}), groups),
            "stand_ins": _stand_ins(data.get("stand_ins", {})),
            "shapes": _shapes(data.get("shapes", {})),
        }
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"the plan must be complete JSON written by hessprune, got {_short(error)}. Save it again."
        ) from error
    for name, units in fields["implanted"].items():
        both = sorted(set(units) & set(fields["removed"].get(name, ())))
        require(not both, f"units {both[:4]} of group {name!r} both removed and implanted")
    return fields


def _format(plan: "Plan") -> int:
    if plan.budget.is_latency or isinstance(plan.budget.value, str):
        return 3
    return 2 if plan.implanted else 1


def _units(data: Mapping[str, Any], groups: tuple[Group, ...]) -> dict[str, tuple[int, ...]]:
    """Return units by group name; each is an integer within its group, once."""
    sizes = {group.name: group.num_units for group in groups}
    require(len(sizes) == len(groups), "two groups of the same name")
    for name, units in data.items():
        require(name in sizes, f"units of the unknown group {name!r}")
        wrong = [unit for unit in units if not is_count(unit) or unit >= sizes[name]]
        require(not wrong, f"the units {wrong[:4]} in group {name!r}, which has {sizes[name]}")
        require(len(set(units)) == len(units), f"doubled units in group {name!r}")
    return {name: tuple(units) for name, units in data.items()}


def _budget(data: Mapping[str, Any], version: int) -> Budget:
    """Return the budget; before format 3 a time of at most 1 was a share, and microseconds had a name of their own."""
    ((quantity, value),) = data.items()
    if version < 3 and quantity in ("latency_ms", "latency_us"):
        if value <= 1:
            return Budget.keeping("latency_ms", value)
        return Budget(latency_ms=value / 1000 if quantity == "latency_us" else value)
    return Budget(**{quantity: value})


def _cost(data: Mapping[str, Any]) -> Cost:
    require(all(map(is_count, data.values())), f"the cost {dict(data)!r}")
    return Cost(**data)


def _stand_ins(data: Mapping[str, Any]) -> dict[str, int | None]:
    require(all(rank is None or (is_count(rank) and rank > 0) for rank in data.values()), "impossible ranks")
    return dict(data)


def _shapes(data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    require(all(is_count(size) for shape in data.values() for size in shape), "impossible shapes")
    return {name: tuple(shape) for name, shape in data.items()}


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 120 else f"{text[:120]}…"
