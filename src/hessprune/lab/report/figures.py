"""The report's figures as inline SVG: drawn by matplotlib, coloured by the page.

A figure is a function from a `RunReport` to an SVG string, or to `""` where nothing is to be shown. Each is drawn
twice: for screens and paper, and `narrow` for telephones, with the same size of letters.
"""

from collections.abc import Sequence
from math import log10

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator

from hessprune.lab.report.curve import SMALLEST_RANGE, accuracy_against_cost
from hessprune.lab.report.run_report import EpochPoint, GroupSaliency, LayerWidth, RunReport
from hessprune.lab.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    NARROW,
    ORANGE,
    PALE,
    PAPER,
    PERCENT,
    WIDE,
    as_svg,
    new_figure,
)

__all__ = ["accuracy_against_cost", "network", "saliencies", "training"]

FEW = 12
"""Layers that a narrow drawing can name."""


def network(report: RunReport, narrow: bool = False) -> str:
    """Draw the network as it was and as it is: one bar per layer, its outline dense, filled as far as kept."""
    layers = report.layers
    if not layers:
        return ""
    most = FEW if narrow else 2 * FEW
    with new_figure(NARROW if narrow else WIDE, 2.6 if len(layers) > most else 3.0) as figure:
        axes = figure.add_subplot()
        _draw_layers(axes, layers, named=len(layers) <= most)
        axes.set(ylabel="output channels", xlim=(-0.8, len(layers) - 0.2), ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return as_svg(figure, "Channels kept in every layer, from input to output")


def saliencies(report: RunReport, narrow: bool = False) -> str:
    """Draw the saliency of every unit on a logarithmic axis, one row per group, removed units hollow."""
    groups = report.saliency
    if not groups:
        return ""
    with new_figure(NARROW if narrow else WIDE, 0.8 + 0.25 * len(groups)) as figure:
        axes = figure.add_subplot()
        floor = _floor(groups)
        for row, group in enumerate(groups):
            _draw_strip(axes, row, group, floor)
        axes.set(xscale="log", xlabel="saliency" if narrow else "saliency: estimated increase of the loss if it goes")
        axes.xaxis.set_major_locator(LogLocator(numticks=4 if narrow else 8))
        axes.xaxis.set_major_formatter(lambda value, _: f"1e{round(log10(value))}".replace("-", "−"))
        axes.set_yticks(range(len(groups)), [group.group for group in groups])
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.minorticks_off()
        return as_svg(figure, "Saliency of every unit by group; removed units are hollow")


def training(report: RunReport, narrow: bool = False) -> str:
    """Draw loss and validation accuracy of every training stage against the epoch: one column for each stage."""
    stages = {name: epochs for name, epochs in report.history.items() if len(epochs) > 1}
    if not stages:
        return ""
    with new_figure(NARROW, 3.6 * len(stages)) if narrow else new_figure(WIDE, 4.2) as figure:
        grid = figure.subplots(2 * len(stages), 1) if narrow else figure.subplots(2, len(stages), squeeze=False).T
        pairs = grid.reshape(len(stages), 2)  # loss above, accuracy below
        for (name, epochs), (above, below) in zip(stages.items(), pairs, strict=True):
            _draw_losses(above, epochs)
            above.set_title(_spoken(name), color=INK)
            _draw_accuracy(below, epochs)
        for pair in pairs if narrow else pairs[:1]:
            for axes, quantity in zip(pair, ("loss", "validation accuracy"), strict=True):
                axes.set_ylabel(quantity)
        figure.align_ylabels()
        return as_svg(figure, "Training curves")


def _draw_layers(axes: Axes, layers: Sequence[LayerWidth], *, named: bool) -> None:
    """Draw bars and counts; layers coupled through a shared group have the second colour."""
    shared = {group for group, count in _counts(layers).items() if count > 1}
    x = range(len(layers))
    colors = [PALE if layer.group in shared else BLUE for layer in layers]
    axes.bar(x, [layer.dense for layer in layers], width=0.72, facecolor="none", edgecolor=GREY, linewidth=0.9)
    axes.bar(x, kept := [layer.kept for layer in layers], width=0.72, color=colors, linewidth=0)
    if any(small := [layer.implanted for layer in layers]):
        axes.bar(x, small, bottom=kept, width=0.72, color=GREEN, linewidth=0)
    if not named:
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
            fontsize=10,
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
    axes.legend(frameon=False, fontsize=10, labelcolor="linecolor", handlelength=1.2)


def _draw_accuracy(axes: Axes, epochs: Sequence[EpochPoint]) -> None:
    axes.plot([epoch.epoch for epoch in epochs], [epoch.validation_accuracy for epoch in epochs], color=BLUE)
    low, high = axes.get_ylim()
    high = min(high, 1.002)  # no accuracy is higher; a line on the edge should be whole
    axes.set_ylim(min(low, high - SMALLEST_RANGE), high)
    axes.set_xlabel("epoch")
    _set_ticks(axes)
    axes.yaxis.set_major_formatter(PERCENT)


def _set_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _spoken(name: str) -> str:
    names = {"pretrain": "Training", "finetune": "Fine-tuning", "quantize": "Training with rounding"}
    return names.get(name, name)
