"""A comparison as a picture and as a page: accuracy against what is kept, one panel for each way to recover."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessprune.foundation.files import replacing, write_text
from hessprune.lab.report.comparison import Comparison, best_in_column, stage_title
from hessprune.lab.report.pages import fill
from hessprune.lab.report.style import MUTED, PERCENT, PRINTED, as_svg, new_figure

COLORS = {
    "random": "#8a929c",
    "magnitude": "#d55e00",
    "bn_scale": "#a6761d",
    "taylor": "#b39c00",
    "hap": "#0072b2",
    "sosp-h": "#009e73",
    "sosp-i": "#56b4e9",
    "joint": "#cc3d8f",
}
"""Of the methods: told apart by colour-blind readers, legible on light and dark; variants of one are dashed."""
OTHER = "#6a51a3"
"""Of methods that users add."""
DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)))
QUANTITIES = {"macs": "MACs", "params": "parameters", "units": "channels"}


def write_comparison(comparison: Comparison, folder: Path | str) -> None:
    """Write `comparison.png` and the self-contained `comparison.html` into a folder."""
    with replacing(Path(folder) / "comparison.png") as path, new_figure(*_size(comparison), printed=True) as figure:
        _draw(figure, comparison, PRINTED[MUTED])
        figure.savefig(path, dpi=150)
    write_text(Path(folder) / "comparison.html", render(comparison))


def accuracy_curves(comparison: Comparison) -> str:
    """Draw mean accuracy against the mean share that is kept, with the spread over the draws as bars, as SVG."""
    with new_figure(*_size(comparison)) as figure:
        _draw(figure, comparison, MUTED)
        return as_svg(figure, "Accuracy against what is kept, for each method")


def render(comparison: Comparison) -> str:
    """Return the comparison as an HTML document, a function of `comparison` alone."""
    return fill(
        "comparison.html",
        headline=f"{comparison.title}: {len(comparison.methods)} ways to choose what goes",
        lead=f"{comparison.dense['accuracy']:.1%} before pruning. {' '.join(comparison.notes)}",
        footer=f"hessprune {comparison.versions.get('hessprune', '')} · data {comparison.data_fingerprint[:12]}",
        curves=accuracy_curves(comparison),
        kept=f"{QUANTITIES[comparison.quantity]} kept",
        budgets=[f"{budget:.0%}" for budget in comparison.budgets],
        tables=[(stage_title(*stage).capitalize(), list(_rows(comparison, stage))) for stage in comparison.stages],
        unreachable=comparison.unreachable,
    )


def _rows(comparison: Comparison, stage: tuple[int, bool]) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield each method with its cells: the text, and whether it is the best of its column."""
    rows = comparison.rows(*stage)
    best = set(best_in_column(rows))
    for method in comparison.methods:
        keys = [(method, budget) for budget in comparison.budgets]
        yield method, [(str(rows[key]) if key in rows else "–", key in best) for key in keys]


def _size(comparison: Comparison) -> tuple[float, float]:
    return 3.9 * max(len(comparison.stages), 1) + 1.5, 3.4


def _draw(figure: Figure, comparison: Comparison, muted: str) -> None:
    """One panel for each table, each on a scale of its own: without compensation, methods fall to chance."""
    stages = comparison.stages
    panels = figure.subplots(1, max(len(stages), 1), squeeze=False)[0]
    for axes, stage in zip(panels, stages, strict=False):
        _draw_panel(axes, comparison, stage)
        axes.axhline(comparison.dense["accuracy"], color=muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set(title=stage_title(*stage), xlabel=f"{QUANTITIES[comparison.quantity]} kept")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.invert_xaxis()
    panels[0].set_ylabel("accuracy")
    shown = panels[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside right upper", frameon=False, fontsize=9, handlelength=3.6)  # shows dashes


def _draw_panel(axes: Axes, comparison: Comparison, stage: tuple[int, bool]) -> None:
    rows, seen = comparison.rows(*stage).values(), []
    for method in comparison.methods:
        own = sorted((row for row in rows if row.method == method), key=lambda row: row.kept)
        base = method.partition("(")[0]
        style = {"color": COLORS.get(base, OTHER), "linestyle": DASHES[seen.count(base) % len(DASHES)]}
        seen.append(base)
        spread = [row.spread or 0 for row in own]
        accuracies = [row.accuracy for row in own]
        axes.errorbar([r.kept for r in own], accuracies, yerr=spread, label=method, marker="o", capsize=2, **style)
