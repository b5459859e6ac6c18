"""The comparisons of methods: pictures, tables, and the rows that other pages show of them."""

from pathlib import Path

from hessprune.lab.report.comparison import Comparison, best_in_column, stage_title
from tables.records import DOCS

CHOICES = (
    ("ResNet-56, cut and left", "oneshot/resnet56-all", (0, False)),
    ("ResNet-56, refitted", "oneshot/resnet56-all", (0, True)),
    ("ResNet-20, refitted", "oneshot/resnet20-all", (0, True)),
    ("ResNet-20, cut, two epochs", "finetuned/resnet20-plain", (2, False)),
)
"""Columns of the table of methods: title, comparison, epochs of training and whether the survivors were refitted."""
VARIANTS = {
    "inner": "inner channels",
    "all": "all channels",
    "plain": "all channels, as published",
    "compensated": "all channels",
}
"""What the second part of a comparison's name says."""


def comparison_tables(kind: str) -> str:
    """Return picture and tables of every committed comparison of one kind."""
    parts = [_comparison(path) for path in sorted((DOCS / "results" / kind).glob("*.json"))]
    return "\n\n".join(parts) or "None is committed yet."


def choice_rows() -> str:
    """Return a table of all methods at half of the MACs: without the refit, with it, and after training."""
    found = {name: Comparison.load(DOCS / "results" / f"{name}.json") for _, name, _ in CHOICES}
    columns = [{m: row for (m, share), row in found[n].rows(*way).items() if share == 0.5} for _, n, way in CHOICES]
    lines = [f"| method | {' | '.join(title for title, _, _ in CHOICES)} |", "|---" * (len(CHOICES) + 1) + "|"]
    dense = (f"{100 * found[name].dense['accuracy']:.1f}" for _, name, _ in CHOICES)
    lines.append(f"| dense | {' | '.join(dense)} |")
    for method in ("random", "magnitude", "bn_scale", "taylor", "hap", "sosp-h", "sosp-i", "joint"):
        lines.append(f"| `{method}` | {' | '.join(str(column.get(method, '–')) for column in columns)} |")
    return "\n".join(lines)


def _comparison(path: Path) -> str:
    """Return one comparison: what it is, its picture, and a table for each way to recover."""
    found, kind, name = Comparison.load(path), path.parent.name, path.stem
    quantity = _quantity(found)
    head = f"### {_title(path)}: {found.dense['accuracy']:.1%} before pruning"
    lines = [head, "", *found.notes]
    if len(found.budgets) > 1:
        lines += ["", f"![{name}](images/{kind}-{name}.png)"]
    for stage in found.stages:
        rows = found.rows(*stage)
        best = set(best_in_column(rows))
        columns = [f"{budget:.0%}" for budget in found.budgets]
        lines += ["", f"{stage_title(*stage).capitalize()}; {quantity} kept:", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for method in found.methods:
            keys = [(method, budget) for budget in found.budgets]
            shown = [f"**{rows[k]}**" if k in best else str(rows[k]) if k in rows else "–" for k in keys]
            lines.append(f"| `{method}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def headline(path: Path) -> str:
    """Return the row of a comparison: at half the budget, the three best methods and `random`."""
    found = Comparison.load(path)
    rows = {m: row for (m, budget), row in found.rows(*found.stages[-1]).items() if budget == 0.5}
    best = sorted(rows, key=lambda method: -rows[method].accuracy)
    best = [*best[:3], *(["random"] if "random" in best[3:] else [])]
    shown = ", ".join(f"`{method}` {rows[method]}" for method in best)
    what = f"{_title(path)}, half of the {_quantity(found)}, {stage_title(*found.stages[-1])}"
    accuracies = f"{100 * found.dense['accuracy']:.1f} → {shown} %"
    return f"| {what} | accuracy {accuracies} | `make reproduce-{path.parent.name}` |"


def _title(path: Path) -> str:
    """Say what was compared, from the comparison's name."""
    network, what = path.stem.split("-")
    return f"{network.replace('resnet', 'ResNet-')}, {VARIANTS[what]}"


def _quantity(found: Comparison) -> str:
    return {"units": "channels", "macs": "MACs", "params": "parameters"}[found.quantity]
