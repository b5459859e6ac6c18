"""The report's figures as inline SVG: drawn by matplotlib, coloured by the page.

Every colour is a placeholder that becomes a CSS variable of the page, so one drawing serves light and dark; text stays
text, in the page's own font. A figure is a function from a `RunReport` to an SVG string, or to `""` where nothing is
to be shown.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hessprune.report.run_report import EpochPoint, GroupSaliency, LayerWidth, RunReport

# Placeholder → CSS variable. The page defines them for light and dark, from a palette safe for colour-blind readers.
INK, MUTED, LINE, PAPER = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
BLUE, ORANGE, GREEN, GREY, PALE = "#0a0a05", "#0a0a06", "#0a0a07", "#0a0a08", "#0a0a09"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--card",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    GREY: "--grey",
    PALE: "--pale",
}
_BASELINES = {"magnitude": (ORANGE, "s"), "random": (GREY, "^")}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hessprune",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")


def accuracy_against_cost(report: RunReport) -> str:
    """Draw validation accuracy against MACs kept: one line per method, one mark for the fine-tuned model."""
    methods = list(dict.fromkeys(point.method for point in report.curve))
    if not methods:
        return ""
    with _figure(5.9, 3.2) as figure:
        axes = figure.add_subplot()
        for method in methods:
            _draw_method(axes, report, method)
        _draw_milestones(axes, report)
        _set_limits(axes, min(point.macs_fraction for point in report.curve))
        _label_methods(axes, report, methods)
        axes.set(xlabel="MACs kept", ylabel="validation accuracy")
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.yaxis.set_major_formatter(_PERCENT)
        return _svg(figure, "Validation accuracy against the share of MACs kept, for each method")


def network(report: RunReport) -> str:
    """Draw the network as it was and as it is: one bar per layer, its outline dense, filled as far as kept."""
    layers = report.layers
    if not layers:
        return ""
    with _figure(9.6, 2.6 if len(layers) > 24 else 2.9) as figure:
        axes = figure.add_subplot()
        _draw_layers(axes, layers)
        axes.set(ylabel="output channels", xlim=(-0.8, len(layers) - 0.2), ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return _svg(figure, "Channels kept in every layer, from input to output")


def saliencies(report: RunReport) -> str:
    """Draw the saliency of every unit on a logarithmic axis, one row per group, removed units hollow."""
    groups = report.saliency
    if not groups:
        return ""
    with _figure(9.6, 0.75 + 0.235 * len(groups)) as figure:
        axes = figure.add_subplot()
        floor = _floor(groups)
        for row, group in enumerate(groups):
            _draw_strip(axes, row, group, floor)
        axes.set(xscale="log", xlabel="saliency: estimated increase of the loss if the unit goes")
        axes.set_yticks(range(len(groups)), [group.group for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.minorticks_off()
        return _svg(figure, "Saliency of every unit by group; removed units are hollow")


def training(report: RunReport) -> str:
    """Draw loss and validation accuracy of every training stage against the epoch."""
    stages = {name: epochs for name, epochs in report.history.items() if len(epochs) > 1}
    if not stages:
        return ""
    with _figure(9.6, 2.5) as figure:
        for column, quantity in enumerate(("loss", "accuracy")):
            for row, (name, epochs) in enumerate(stages.items()):
                axes = figure.add_subplot(1, 2 * len(stages), 1 + 2 * row + column)
                _draw_epochs(axes, epochs, quantity)
                axes.set_title(f"{_spoken(name)}: {quantity}", color=INK)
        return _svg(figure, "Training curves")


def _draw_method(axes: Axes, report: RunReport, method: str) -> None:
    points = [(p.macs_fraction, p.accuracy) for p in report.curve if p.method == method]
    points += [(1.0, report.validation["dense"])] if "dense" in report.validation else []
    color, marker = _BASELINES.get(method, (BLUE, "o"))
    x, y = zip(*sorted(points, reverse=True), strict=True)
    axes.plot(x, y, color=color, marker=marker, markeredgecolor=PAPER, zorder=3 if color == BLUE else 2)


def _set_limits(axes: Axes, left: float) -> None:
    """Run from dense to cheap, with room for names; never magnify differences of less than a few points."""
    low, high = axes.get_ylim()
    axes.set(xlim=(1.02, left - 0.19 * (1.02 - left)), ylim=(min(low, high - 0.05), high + 0.07 * (high - low)))
    one = 1 + 1e-9  # ticks are sums of floating-point steps
    axes.set_xticks([tick for tick in axes.get_xticks() if left - 0.01 <= tick <= one])
    axes.set_yticks([tick for tick in MaxNLocator(5).tick_values(*axes.get_ylim()) if min(low, 1) <= tick <= one])


def _label_methods(axes: Axes, report: RunReport, methods: Sequence[str]) -> None:
    """Write each method's name beside the end of its line, moved up where names would overlap."""
    ends = {m: min((p for p in report.curve if p.method == m), key=lambda p: p.macs_fraction) for m in methods}
    low, high = axes.get_ylim()
    place = low
    for method, end in sorted(ends.items(), key=lambda item: item[1].accuracy):
        place = max(end.accuracy, place + 0.07 * (high - low))
        color, _ = _BASELINES.get(method, (BLUE, ""))
        at = (end.macs_fraction, place)
        axes.annotate(method, at, xytext=(7, 0), textcoords="offset points", va="center", color=color, weight="bold")


def _draw_milestones(axes: Axes, report: RunReport) -> None:
    """Mark the dense accuracy as a dashed line and the fine-tuned model as a diamond."""
    dense = report.validation.get("dense")
    if dense is not None:
        axes.axhline(dense, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate("dense", (1.0, dense), xytext=(0, 4), textcoords="offset points", color=MUTED)
    tuned = report.validation.get("finetuned")
    if tuned is not None:
        axes.plot(
            [report.macs_fraction], [tuned], marker="D", markersize=8, color=GREEN, markeredgecolor=PAPER, zorder=4
        )
        axes.annotate(
            "fine-tuned",
            (report.macs_fraction, tuned),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=GREEN,
            weight="bold",
        )


def _draw_layers(axes: Axes, layers: Sequence[LayerWidth]) -> None:
    """Draw bars and counts; layers coupled through a shared group have the second colour."""
    shared = {group for group, count in _counts(layers).items() if count > 1}
    x = range(len(layers))
    colors = [PALE if layer.group in shared else BLUE for layer in layers]
    axes.bar(x, [layer.dense for layer in layers], width=0.72, facecolor="none", edgecolor=GREY, linewidth=0.9)
    axes.bar(x, [layer.kept for layer in layers], width=0.72, color=colors, linewidth=0)
    if len(layers) > 24:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(layers)} layers, from input to output")
        return
    axes.set_xticks(list(x), [layer.name.removesuffix(".weight") for layer in layers], rotation=35, ha="right")
    for position, layer in enumerate(layers):
        axes.annotate(
            str(layer.kept), (position, layer.dense), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
        )


def _counts(layers: Sequence[LayerWidth]) -> dict[str, int]:
    names = [layer.group for layer in layers]
    return {name: names.count(name) for name in names}


def _draw_strip(axes: Axes, row: int, group: GroupSaliency, floor: float) -> None:
    values = [max(value, floor) for value in group.values]
    for kept, face, edge in ((False, "none", ORANGE), (True, BLUE, PAPER)):
        x = [value for value, stays in zip(values, group.kept, strict=True) if stays is kept]
        axes.scatter(x, [row] * len(x), s=26, facecolor=face, edgecolor=edge, linewidth=0.9, zorder=2 + kept)


def _floor(groups: Sequence[GroupSaliency]) -> float:
    """Return the value at which zero saliencies are drawn: a little below the smallest positive one."""
    positive = [value for group in groups for value in group.values if value > 0]
    return min(positive, default=1.0) / 2


def _draw_epochs(axes: Axes, epochs: Sequence[EpochPoint], quantity: str) -> None:
    x = [epoch.epoch for epoch in epochs]
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("epoch")
    if quantity == "accuracy":
        axes.plot(x, [epoch.validation_accuracy for epoch in epochs], color=BLUE)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        return
    trained = [(epoch.epoch, epoch.train_loss) for epoch in epochs if epoch.train_loss is not None]
    axes.plot(*zip(*trained, strict=True), color=ORANGE, label="train")
    axes.plot(x, [epoch.validation_loss for epoch in epochs], color=BLUE, label="validation")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.2)


def _spoken(name: str) -> str:
    return {"pretrain": "Training", "finetune": "Fine-tuning"}.get(name, name)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure of so many inches, under the report's style."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element: no metadata, no fixed size, colours from the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several figures share a page: ids would clash
    for attribute in ("width", "height"):
        text = re.sub(rf'(<svg\b[^>]*?)\s{attribute}="[^"]*"', r"\1", text, count=1)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()
