"""Accuracy or perplexity against cost, without training: one line for each method."""

import math
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hessprune.lab.report.run_report import RunReport
from hessprune.lab.report.scores import score_of
from hessprune.lab.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    NARROW,
    ORANGE,
    PAPER,
    PERCENT,
    WIDE,
    as_svg,
    new_figure,
)

BASELINES = {"magnitude": (ORANGE, "s"), "random": (GREY, "^")}
SMALLEST_RANGE = 0.05
"""Of an axis of accuracy: five points, so that noise does not fill it."""
Line = Sequence[tuple[float, float, float]]
"""MACs kept, mean score, and its standard deviation over the draws."""


def accuracy_against_cost(report: RunReport, narrow: bool = False) -> str:
    """Draw the validation score against MACs kept, with the spread over draws of calibration samples as bars."""
    ways = sorted({point.refitted for point in report.curve}, reverse=True)
    if not ways:
        return ""
    both = len(ways) > 1
    width, height = (NARROW, 2.9 * len(ways)) if narrow else (WIDE if both else 5.9, 3.2)
    with new_figure(width, height) as figure:
        shape = (len(ways), 1) if narrow else (1, len(ways))
        for axes, refitted in zip(figure.subplots(*shape, squeeze=False).flat, ways, strict=True):
            _draw_panel(axes, report, refitted)
            if both:
                axes.set_title("refitted, as by default" if refitted else "cut and left as it is", color=INK)
        return as_svg(figure, f"Validation {score_of(report).name} against the share of MACs kept, for each method")


def lines(report: RunReport, refitted: bool) -> dict[str, Line]:
    """Return the points of each method: budgets in falling order, the draws of each budget averaged."""
    points = [point for point in report.curve if point.refitted is refitted]
    found: dict[str, Line] = {}
    score = score_of(report)
    for method in dict.fromkeys(point.method for point in points):
        by_draw: dict[int, list[tuple[float, float]]] = {}
        for point in points:
            if point.method == method:
                by_draw.setdefault(point.draw, []).append((point.macs_fraction, score.of(point)))
        # The n-th point of every draw belongs to one budget.
        found[method] = [_mean(column) for column in zip(*by_draw.values(), strict=False)]
    return found


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    kept, accuracies = zip(*points, strict=True)
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return statistics.fmean(kept), statistics.fmean(accuracies), spread


def _draw_panel(axes: Axes, report: RunReport, refitted: bool) -> None:
    """Draw one way to recover, from dense to cheap."""
    found, score = lines(report, refitted), score_of(report)
    if score.lower_is_better:
        axes.set_yscale("log")  # methods differ by factors
    for method, line in found.items():
        _draw_line(axes, report, method, line)
    _draw_milestones(axes, report, trained=refitted)
    left = min(kept for line in found.values() for kept, _, _ in line)
    _set_limits(axes, left, is_share=not score.lower_is_better)
    _label_methods(axes, found)
    axes.set(xlabel="MACs kept", ylabel=f"validation {score.name}")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter("{x:.3g}" if score.lower_is_better else PERCENT)


def _draw_line(axes: Axes, report: RunReport, method: str, line: Line) -> None:
    dense = report.validation.get("dense")
    points = sorted([*line, *([(1.0, dense, 0.0)] if dense is not None else [])], reverse=True)
    color, marker = BASELINES.get(method, (BLUE, "o"))
    kept, values, spread = zip(*points, strict=True)
    error = spread if any(spread) else None
    order = 3 if color == BLUE else 2
    axes.errorbar(
        kept, values, yerr=error, color=color, marker=marker, markeredgecolor=PAPER, capsize=2.5, zorder=order
    )


def _set_limits(axes: Axes, left: float, *, is_share: bool) -> None:
    """Run from dense to cheap, with room for names; never magnify differences of less than a few points."""
    low, high = axes.get_ylim()
    if is_share:
        low, high = min(low, high - SMALLEST_RANGE), high + 0.07 * (high - low)
    else:  # on a logarithmic axis
        high *= (high / low) ** 0.07
    axes.set(xlim=(1.02, left - 0.27 * (1.02 - left)), ylim=(low, high))
    one = 1 + 1e-9  # ticks are sums of floating-point steps
    axes.set_xticks([tick for tick in axes.get_xticks() if left - 0.01 <= tick <= one])
    if is_share:
        axes.set_yticks([tick for tick in MaxNLocator(5).tick_values(low, high) if min(low, 1) <= tick <= one])
    else:
        axes.set_yticks([tick for tick in _round_numbers(low, high) if low <= tick <= high])
        axes.minorticks_off()


def _round_numbers(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten around a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in (1, 2, 5)]


def _label_methods(axes: Axes, found: Mapping[str, Line]) -> None:
    """Write each method's name beside the end of its line, moved up where names would overlap."""
    scale = axes.yaxis.get_transform()  # logarithmic for perplexity
    low, high = (float(scale.transform(limit)) for limit in axes.get_ylim())
    height = low - 1
    ends = {method: min(line) for method, line in found.items()}
    for method, (kept, value, _) in sorted(ends.items(), key=lambda item: item[1][1]):
        height = max(float(scale.transform(value)), height + 0.085 * (high - low))
        place = float(scale.inverted().transform(height))
        color, _ = BASELINES.get(method, (BLUE, ""))
        words = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "color": color, "weight": "bold"}
        axes.annotate(method, (kept, place), **words)


def _draw_milestones(axes: Axes, report: RunReport, *, trained: bool) -> None:
    """Mark the dense accuracy as a dashed line and the fine-tuned model as a diamond."""
    dense = report.validation.get("dense")
    if dense is not None:
        axes.axhline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("dense", (1.0, dense), xytext=(0, 4), textcoords="offset points", color=MUTED)
    tuned = report.validation.get("finetuned")
    if tuned is None or not trained:
        return
    at = (report.macs_fraction, tuned)
    axes.plot(*([value] for value in at), marker="D", markersize=8, color=GREEN, markeredgecolor=PAPER, zorder=4)
    words = {"xytext": (-6, 7), "textcoords": "offset points", "ha": "right", "color": GREEN, "weight": "bold"}
    behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # the methods' lines may pass there
    axes.annotate("fine-tuned", at, bbox=behind, zorder=5, **words)
