"""The report's figures as inline SVG: drawn by matplotlib, coloured by the page.

A figure is a function from a `RunReport` to an SVG string, or to `""` where nothing is to be shown.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hessprune.lab.report.run_report import EpochPoint, GroupSaliency, LayerWidth, RunReport
from hessprune.lab.report.style import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PALE, PAPER, PERCENT, as_svg, new_figure

_BASELINES = {"magnitude": (ORANGE, "s"), "random": (GREY, "^")}


def accuracy_against_cost(report: RunReport) -> str:
    """Draw validation accuracy against MACs kept: one line per method, one mark for the fine-tuned model."""
    methods = list(dict.fromkeys(point.method for point in report.curve))
    if not methods:
        return ""
    with new_figure(5.9, 3.2) as figure:
        axes = figure.add_subplot()
        for method in methods:
            _draw_method(axes, report, method)
        _draw_milestones(axes, report)
        _set_limits(axes, min(point.macs_fraction for point in report.curve))
        _label_methods(axes, report, methods)
        axes.set(xlabel="MACs kept", ylabel="validation accuracy")
        axes.xaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_formatter(PERCENT)
        return as_svg(figure, "Validation accuracy against the share of MACs kept, for each method")


def network(report: RunReport) -> str:
    """Draw the network as it was and as it is: one bar per layer, its outline dense, filled as far as kept."""
    layers = report.layers
    if not layers:
        return ""
    with new_figure(9.6, 2.6 if len(layers) > 24 else 2.9) as figure:
        axes = figure.add_subplot()
        _draw_layers(axes, layers)
        axes.set(ylabel="output channels", xlim=(-0.8, len(layers) - 0.2), ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return as_svg(figure, "Channels kept in every layer, from input to output")


def saliencies(report: RunReport) -> str:
    """Draw the saliency of every unit on a logarithmic axis, one row per group, removed units hollow."""
    groups = report.saliency
    if not groups:
        return ""
    with new_figure(9.6, 0.75 + 0.235 * len(groups)) as figure:
        axes = figure.add_subplot()
        floor = _floor(groups)
        for row, group in enumerate(groups):
            _draw_strip(axes, row, group, floor)
        axes.set(xscale="log", xlabel="saliency: estimated increase of the loss if the unit goes")
        axes.set_yticks(range(len(groups)), [group.group for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.minorticks_off()
        return as_svg(figure, "Saliency of every unit by group; removed units are hollow")


def training(report: RunReport) -> str:
    """Draw loss and validation accuracy of every training stage against the epoch: one column for each stage."""
    stages = {name: epochs for name, epochs in report.history.items() if len(epochs) > 1}
    if not stages:
        return ""
    with new_figure(9.6, 4.2) as figure:
        grid = figure.subplots(2, len(stages), squeeze=False)
        for (name, epochs), (above, below) in zip(stages.items(), grid.T, strict=True):
            _draw_losses(above, epochs)
            above.set_title(_spoken(name), color=INK)
            _draw_accuracy(below, epochs)
        for row, quantity in zip(grid, ("loss", "validation accuracy"), strict=True):
            row[0].set_ylabel(quantity)
        figure.align_ylabels()
        return as_svg(figure, "Training curves")


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
    axes.bar(x, kept := [layer.kept for layer in layers], width=0.72, color=colors, linewidth=0)
    if any(small := [layer.implanted for layer in layers]):
        axes.bar(x, small, bottom=kept, width=0.72, color=GREEN, linewidth=0)
    if len(layers) > 24:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(layers)} layers, from input to output")
        return
    axes.set_xticks(list(x), [layer.name.removesuffix(".weight") for layer in layers], rotation=35, ha="right")
    for position, layer in enumerate(layers):
        axes.annotate(
            f"{layer.kept} + {layer.implanted}" if layer.implanted else str(layer.kept),
            (position, layer.dense),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def _counts(layers: Sequence[LayerWidth]) -> dict[str, int]:
    names = [layer.group for layer in layers]
    return {name: names.count(name) for name in names}


def _draw_strip(axes: Axes, row: int, group: GroupSaliency, floor: float) -> None:
    values = [max(value, floor) for value in group.values]
    small = group.implanted or (False,) * len(values)
    zones = [kept + implanted for kept, implanted in zip(group.kept, small, strict=True)]
    for zone, (face, edge) in enumerate((("none", ORANGE), (BLUE, PAPER), (GREEN, PAPER))):
        x = [value for value, own in zip(values, zones, strict=True) if own == zone]
        axes.scatter(x, [row] * len(x), s=26, facecolor=face, edgecolor=edge, linewidth=0.9, zorder=2 + bool(zone))


def _floor(groups: Sequence[GroupSaliency]) -> float:
    """Return the value at which zero saliencies are drawn: a little below the smallest positive one."""
    positive = [value for group in groups for value in group.values if value > 0]
    return min(positive, default=1.0) / 2


def _draw_losses(axes: Axes, epochs: Sequence[EpochPoint]) -> None:
    trained = [(epoch.epoch, epoch.train_loss) for epoch in epochs if epoch.train_loss is not None]
    axes.plot(*zip(*trained, strict=True), color=ORANGE, label="train")
    axes.plot(
        [epoch.epoch for epoch in epochs], [epoch.validation_loss for epoch in epochs], color=BLUE, label="validation"
    )
    _set_ticks(axes)
    axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.2)


def _draw_accuracy(axes: Axes, epochs: Sequence[EpochPoint]) -> None:
    axes.plot([epoch.epoch for epoch in epochs], [epoch.validation_accuracy for epoch in epochs], color=BLUE)
    low, high = axes.get_ylim()
    high = min(high, 1.002)  # no accuracy is higher; a line on the edge should be whole
    axes.set_ylim(min(low, high - 0.02), high)
    axes.set_xlabel("epoch")
    _set_ticks(axes)
    axes.yaxis.set_major_formatter(PERCENT)


def _set_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _spoken(name: str) -> str:
    names = {"pretrain": "Training", "finetune": "Fine-tuning", "quantize": "Training with rounding"}
    return names.get(name, name)
