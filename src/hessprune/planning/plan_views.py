"""A plan as a person sees it: a few lines, a table, HTML, bars."""

from typing import TYPE_CHECKING, Any

from hessprune.foundation.checks import optional_import
from hessprune.foundation.formatting import bytes_text, count_text, counted, html_table, text_table

if TYPE_CHECKING:
    from hessprune.planning.plan import Plan


def summary(plan: "Plan") -> str:
    """Return the budget, the costs and the numbers of units in three lines."""
    quantity = plan.budget.quantity
    return "\n".join([
        f"{plan.budget}: {plan.kept_fraction(quantity):.1%} of {quantity} kept",
        f"{plan.cost_before} -> {plan.cost_after}",
        f"{_zones(plan)}, in {counted(len(plan.groups), 'group')}",
    ])


def one_line(plan: "Plan") -> str:
    """Return the budget and the numbers of units."""
    return f"Plan({plan.budget}, {_zones(plan)})"


def table(plan: "Plan") -> str:
    """Return one line for each group: its units, and how many of them are kept and implanted."""
    return text_table(*_columns(plan))


def as_html(plan: "Plan") -> str:
    """Return the costs and the groups as two HTML tables."""
    costs = [
        [name, count_text(cost.macs), count_text(cost.params), bytes_text(cost.bytes)]
        for name, cost in (("before", plan.cost_before), ("after", plan.cost_after))
    ]
    return html_table(["", "MACs", "parameters", "size"], costs, one_line(plan)) + html_table(*_columns(plan))


def bars(plan: "Plan") -> Any:
    """Return a figure with one bar for each group: kept, implanted and removed units.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = optional_import("matplotlib.figure", "report").Figure(
        figsize=(6, 1 + 0.25 * len(plan.groups)), layout="constrained"
    )
    axes, names, kept = figure.add_subplot(), [group.name for group in plan.groups], plan.kept
    zones = {"kept": kept, "implanted": plan.implanted, "removed": plan.removed}
    left = [0] * len(names)
    for (label, zone), color in zip(zones.items(), ("#33638d", "#3cbb75", "#dddddd"), strict=True):
        widths = [len(zone.get(name, ())) for name in names]
        if any(widths):
            axes.barh(names, widths, left=left, label=label, color=color)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("units")
    axes.legend(frameon=False)
    return figure


def _columns(plan: "Plan") -> tuple[list[str], list[list[object]]]:
    kept, head = plan.kept, ["group", "units", "kept", "implanted"]
    rows: list[list[object]] = [
        [group.name, group.num_units, len(kept[group.name]), len(plan.implanted.get(group.name, ()))]
        for group in plan.groups
    ]
    return (head, rows) if plan.implanted else (head[:-1], [row[:-1] for row in rows])


def _zones(plan: "Plan") -> str:
    total = sum(group.num_units for group in plan.groups)
    implanted = f", {plan.num_implanted} implanted" if plan.implanted else ""
    return f"{plan.num_removed} of {total} units removed{implanted}"
