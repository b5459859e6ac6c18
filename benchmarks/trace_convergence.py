"""Claim: one draw is worth more than hundreds of Hutchinson probes.

n = 336 lossless CIFAR-10 images, pretrained ResNet-20, saliencies of all output channels. Each curve is the rank
correlation with the exact saliencies over the seconds spent; the picture goes beside the JSON. At the ends of a curve
stands the number of draws or probes.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature import ParamSlice, TraceOptions, TraceResult, block_traces
from support.claims import Claims, arguments, spearman
from support.hap import PlainHap
from support.networks import channels, images, joined, pretrained, weights

Curve = list[dict[str, float]]
DRAWS, PROBES = [1, 2, 4, 8, 16], [1, 3, 10, 30, 100, 300]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    model, batches = pretrained(20, options.data_root), [images(options.data_root)]
    curves = convergence(claims, model, batches, options.quick)
    claims.write(options.out, curves=curves)
    if options.out is not None:
        draw(curves, options.out.with_suffix(".png"))


def scored(model: nn.Module) -> dict[str, list[ParamSlice]]:
    """Return all output channels, scaled so that a unit's value is its saliency."""
    scales = {n: w.detach().double().flatten(1).square().sum(1) / (2 * w[0].numel()) for n, w in weights(model).items()}
    return {name: [replace(piece, scale=scales[name]) for piece in pieces] for name, pieces in channels(model).items()}


def trace(model: nn.Module, batches: Any, estimator: str, **settings: Any) -> TraceResult:
    """Return the saliencies of all output channels."""
    return block_traces(model, scored(model), batches, estimator=estimator, options=TraceOptions(**settings))


def convergence(claims: Claims, model: nn.Module, batches: Any, quick: bool) -> dict[str, Curve]:
    """Follow every estimator on its way to the exact saliencies."""
    exact = trace(model, batches, "exact")
    truth = joined(exact.values)
    factors = torch.cat([pieces[0].scale for pieces in scored(model).values() if pieces[0].scale is not None])
    draws, probes, plain_probes = ([1, 2, 4], [1, 2, 5], [1, 2, 5]) if quick else (DRAWS, PROBES, PROBES[:4])
    curves = {
        "exact": [{"probes": 0.0, "seconds": exact.seconds, "spearman": 1.0}],
        "rademacher": drawn(model, batches, draws, truth),
        "hutchinson": probed(model, batches, probes, truth),
        "HAP as published": plain(model, batches, plain_probes, factors, truth),
    }
    for name, curve in curves.items():
        print(name, *(f"{point['probes']:.0f}: {point['spearman']:.3f} ({point['seconds']:.1f} s)" for point in curve))
    one, last, published = curves["rademacher"][0], curves["hutchinson"][-1], curves["HAP as published"][-1]
    claims.at_least("resnet20: rank correlation of one draw", one["spearman"], 0.97, peer=last["spearman"])
    claims.at_most(f"resnet20: rank correlation after {last['probes']:.0f} probes", last["spearman"], 0.9)
    number, ratio = published["probes"], published["seconds"] / one["seconds"]
    claims.at_least(f"resnet20: seconds of {number:.0f} probes as published / one draw", ratio, number)
    return curves


def drawn(model: nn.Module, batches: Any, numbers: list[int], truth: Tensor) -> Curve:
    """Return one point for each number of draws, each a run of its own."""
    runs = [trace(model, batches, "rademacher", num_probes=number) for number in numbers]
    return [
        {"probes": run.num_probes, "seconds": run.seconds, "spearman": spearman(joined(run.values), truth)}
        for run in runs
    ]


def probed(model: nn.Module, batches: Any, numbers: list[int], truth: Tensor) -> Curve:
    """Return the curve of our probes: means over the first of one run's, and the share of its time they took."""
    run = trace(model, batches, "hutchinson", num_probes=max(numbers))
    values = torch.cat(list((run.probes or {}).values()), dim=1)
    return [
        {
            "probes": number,
            "seconds": run.seconds * number / len(values),
            "spearman": spearman(values[:number].mean(0), truth),
        }
        for number in numbers
    ]


def plain(model: nn.Module, batches: Any, numbers: list[int], factors: Tensor, truth: Tensor) -> Curve:
    """Return the curve of the published procedure, its running mean."""
    torch.manual_seed(0)
    started = time.perf_counter()
    means: Iterator[tuple[int, Tensor]] = PlainHap(model, *batches[0]).means(numbers)
    return [
        {"probes": n, "seconds": time.perf_counter() - started, "spearman": spearman(mean * factors, truth)}
        for n, mean in means
    ]


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw rank correlation over seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot([p["seconds"] for p in curve], [p["spearman"] for p in curve], marker="o", label=name)
        for p in curve[:: len(curve) - 1 or 1]:
            axes.annotate(
                f"{p['probes']:.0f}" if p["probes"] else "", (p["seconds"], p["spearman"] - 0.07), ha="center"
            )
    axes.set(xscale="log", xlabel="seconds", ylabel="rank correlation with the exact saliency", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="center left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
