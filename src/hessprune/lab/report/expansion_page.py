"""Widened models as a page: accuracy against parameters, the table, and the groups that grew."""

from matplotlib.axes import Axes

from hessprune.foundation.formatting import counted
from hessprune.lab.report.expansion import Expansion, VariantRow, verdict
from hessprune.lab.report.formats import format_count
from hessprune.lab.report.pages import fill
from hessprune.lab.report.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PALE, PERCENT, as_svg, new_figure

COLORS = {"dense": INK, "unchanged": MUTED, "uniform": ORANGE, "random": GREY, "reallocated": PALE}
"""Of the controls; bottlenecks are blue, those of a second method green."""


def render(expansion: Expansion) -> str:
    """Return the page, a function of `expansion` alone."""
    return fill(
        "expansion.html",
        headline=f"{expansion.title}: widened where it is narrow",
        lead=verdict(expansion),
        footer=f"hessprune {expansion.versions.get('hessprune', '')} · data {expansion.data_fingerprint[:12]}",
        curves=accuracy_against_params(expansion),
        columns=("", "Accuracy", "Over uniform", "Parameters", "MACs"),
        rows=[_row(expansion, row) for row in expansion.rows],
        notes=expansion.notes,
        bottlenecks=expansion.bottlenecks,
    )


def accuracy_against_params(expansion: Expansion) -> str:
    """Draw mean accuracy against parameters, with the spread over the seeds, as SVG."""
    with new_figure(7.2, 3.4) as figure:
        axes = figure.add_subplot()
        rows, places = expansion.rows, _apart(expansion.rows)
        found = [row.name for row in rows if row.name.startswith("bottlenecks")]
        for row in rows:
            own = BLUE if found[:1] == [row.name] else GREEN
            _draw(axes, row, places[row.name], COLORS.get(row.name, own))
        low, high = axes.get_ylim()
        middle = (low + high) / 2
        axes.set_ylim(min(low, middle - 0.01), min(max(high, middle + 0.01), 1.005))  # never zoom into noise
        axes.set(xlabel="parameters", ylabel="test accuracy")
        axes.xaxis.set_major_formatter(lambda value, _: format_count(value))
        axes.yaxis.set_major_formatter(PERCENT)
        axes.margins(x=0.1)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
        return as_svg(figure, "Accuracy against parameters, for each way to widen")


def _draw(axes: Axes, row: VariantRow, place: float, color: str) -> None:
    axes.errorbar([place], [row.accuracy], yerr=[row.spread or 0], fmt="o", color=color, capsize=3, label=row.name)


def _apart(rows: tuple[VariantRow, ...]) -> dict[str, float]:
    """Return places on the axis of parameters; models of one size stand side by side."""
    widest = max(row.params for row in rows)
    places: dict[str, float] = {}
    for row in rows:
        place = row.params
        while any(abs(place - other) < 0.015 * widest for other in places.values()):
            place += 0.02 * widest
        places[row.name] = place
    return places


def _row(expansion: Expansion, row: VariantRow) -> tuple[str, str, tuple[str, ...]]:
    """Return the name of a row, what grew, and the numbers."""
    gain = expansion.gains.get(row.name)
    points = "" if gain is None else f"{gain[0]:+.1f}".replace("-", "−")
    points += f" ± {gain[1]:.1f}" if gain and gain[1] is not None else ""
    grown = sorted({name for variant in expansion.variants if variant.name == row.name for name in variant.widths})
    what = "changed" if row.name == "reallocated" else "grew"
    note = f"{counted(len(grown), 'group')} {what}" if grown else ""
    return row.name, note, (f"{row} %", points, format_count(row.params), format_count(row.macs))
