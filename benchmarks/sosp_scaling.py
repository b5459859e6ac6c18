"""Claim: SOSP-H costs what a few gradients cost, whatever the depth and width; SOSP-I holds a number per pair of units.

Six depths and six widths of CIFAR ResNets with fresh weights, 64 normal images, one thread; seconds of a gradient (one
forward and one backward), of the saliency of SOSP-H, and of SOSP-I with its matrix of interactions, the shortest of
rounds in which all take turns. Exponents are slopes of the logarithms over the number of units, by least squares, with
their standard errors.
"""

import math
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional

import hessprune as hp
from hessprune.lab.models.resnet import ResNet
from support.claims import Claims, arguments, interleaved
from support.networks import noise, warmed

DEPTHS, WIDTHS = (20, 32, 44, 56, 80, 110), (8, 12, 16, 24, 32, 48)
IMAGES, ROUNDS = 64, 3
Row = dict[str, float]


def main() -> None:
    options, claims = arguments(__doc__, lambda parser: parser.add_argument("--picture", type=Path)), Claims()
    torch.set_num_threads(options.threads)
    few = slice(0, 3) if options.quick else slice(None)
    series = {
        "depth": [measured(depth, 16, options.quick) for depth in DEPTHS[few]],
        "width": [measured(20, width, options.quick) for width in WIDTHS[few]],
    }
    for name, rows in series.items():
        slopes = {key: slope(rows, key) for key in ("gradient", "sosp_h", "sosp_i", "matrix_bytes")}
        for key, (value, error) in slopes.items():
            claims.add(f"{name}: exponent of {key} over units", value, "measured", holds=True, peer=round(error, 3))
        extra = slopes["sosp_h"][0] - slopes["gradient"][0]
        claims.at_most(f"{name}: exponent of SOSP-H beyond that of a gradient", extra, 0.2)
        claims.at_least(f"{name}: exponent of the bytes of SOSP-I's matrix", slopes["matrix_bytes"][0], 1.99)
        ratios = [row["sosp_h"] / row["gradient"] for row in rows]
        claims.at_most(f"{name}: SOSP-H in gradients, at most", max(ratios), 6, peer=round(min(ratios), 2))
    claims.write(options.out, series=series)
    if options.picture:
        draw(series, options.picture)


def measured(depth: int, width: int, quick: bool) -> Row:
    """Return the units of one network and the seconds of all three."""
    torch.manual_seed(0)
    model = warmed(ResNet(depth, option="B", width=width, num_classes=10))
    data = noise(IMAGES)
    groups = hp.find_groups(model, data[0][:1])
    hold: dict[str, hp.Saliency] = {}

    def gradient() -> None:
        functional.cross_entropy(model(data[0]), data[1]).backward()
        model.zero_grad()

    def score(method: hp.Method, key: str) -> None:
        hold[key] = hp.saliency(model, groups, [data], method, loss_fn=functional.cross_entropy)

    runs = {
        "gradient": gradient,
        "sosp_h": partial(score, hp.SOSPH(), "sosp_h"),
        "sosp_i": partial(score, hp.SOSPI(), "sosp_i"),
    }
    seconds = interleaved(runs, 1 if quick else ROUNDS)
    matrix = hold["sosp_i"].interactions
    assert isinstance(matrix, torch.Tensor)
    units = sum(group.num_units for group in groups)
    row = {"depth": depth, "width": width, "units": units, **seconds, "matrix_bytes": matrix.nbytes}
    print(row, flush=True)
    return row


def slope(rows: list[Row], key: str) -> tuple[float, float]:
    """Return the least-squares slope of `log key` over `log units`, and its standard error."""
    x = torch.tensor([math.log(row["units"]) for row in rows], dtype=torch.float64)
    y = torch.tensor([math.log(row[key]) for row in rows], dtype=torch.float64)
    centred = x - x.mean()
    value = float((centred @ y) / centred.square().sum())
    residual = y - y.mean() - value * centred
    error = float((residual.square().sum() / max(len(rows) - 2, 1) / centred.square().sum()).sqrt())
    return value, error


def draw(series: dict[str, list[Row]], path: Path) -> None:
    """Draw seconds over units, both axes logarithmic: a panel for each series."""
    from matplotlib.figure import Figure  # which only drawing needs

    figure = Figure(figsize=(9, 4), layout="constrained")
    seconds = [row[key] for rows in series.values() for row in rows for key in ("gradient", "sosp_h", "sosp_i")]
    for axes, (name, rows) in zip(figure.subplots(1, 2, sharey=True), series.items(), strict=True):
        for key, label in (("gradient", "one gradient"), ("sosp_h", "SOSP-H"), ("sosp_i", "SOSP-I")):
            value, error = slope(rows, key)
            label = f"{label}, exponent {value:.2f} ± {error:.2f}"
            axes.loglog([row["units"] for row in rows], [row[key] for row in rows], marker="o", label=label)
        axes.set(xlabel=f"units, by {name}", ylabel="seconds" if name == "depth" else None)
        units = [int(row["units"]) for row in rows]
        axes.set_xticks(units, map(str, units))
        axes.set_xticks([], minor=True)
        axes.legend(loc="upper left")
        axes.set_ylim(0.7 * min(seconds), 6 * max(seconds))  # room for the legend
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
