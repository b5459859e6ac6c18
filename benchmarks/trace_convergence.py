"""Claims: one draw is worth hundreds of Hutchinson probes, and drawing stops by itself once the choice is settled.

n = 336 lossless CIFAR-10 images, pretrained ResNet-20 (and ResNet-56 for the stopping rule), saliencies of all output
channels. Each curve is the rank correlation with the exact saliencies over the seconds spent; the picture goes beside
the JSON.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature import ParamSlice, TraceOptions, TraceResult, Until, block_traces, lowest
from support.claims import Claims, arguments, spearman
from support.hap import PlainHap
from support.networks import channels, images, joined, pretrained, weights

Curve = list[dict[str, float]]


def main() -> None:
    options = arguments(__doc__.split("\n", 1)[0]).parse_args()
    torch.set_num_threads(options.threads)
    claims, batches = Claims(), [images(options.data_root)]
    curves = convergence(claims, pretrained(20, options.data_root), batches, options.quick)
    stopping(claims, pretrained(20 if options.quick else 56, options.data_root), batches)
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
    hap_probes = [1, 3, 10] if quick else [1, 3, 10, 30, 100, 300]
    factors = torch.cat([pieces[0].scale for pieces in scored(model).values() if pieces[0].scale is not None])
    curves = {
        "exact": [{"probes": 0.0, "seconds": exact.seconds, "spearman": 1.0}],
        "rademacher": grow(
            [1, 2, 4] if quick else [1, 2, 4, 8, 16],
            truth,
            lambda n: joined(trace(model, batches, "rademacher", num_probes=n).values),
        ),
        "hutchinson": grow(
            hap_probes[:2] if quick else hap_probes[:-1],
            truth,
            lambda n: joined(trace(model, batches, "hutchinson", num_probes=n).values),
        ),
        "plain HAP": plain(model, batches, hap_probes, factors, truth),
    }
    for name, curve in curves.items():
        print(name, *(f"{point['probes']:.0f}: {point['spearman']:.3f} ({point['seconds']:.1f} s)" for point in curve))
    one, last = curves["rademacher"][0], curves["plain HAP"][-1]
    claims.at_least("resnet20: rank correlation of one draw", one["spearman"], 0.97, peer=last["spearman"])
    claims.at_least(
        f"resnet20: seconds of {last['probes']:.0f} HAP probes / one draw", last["seconds"] / one["seconds"], 10
    )
    claims.at_most(f"resnet20: rank correlation after {last['probes']:.0f} HAP probes", last["spearman"], 0.9)
    return curves


def grow(numbers: list[int], truth: Tensor, estimate: Callable[[int], Tensor]) -> Curve:
    """Return one point for each number of draws, each a run of its own."""
    curve: Curve = []
    for number in numbers:
        started = time.perf_counter()
        value = estimate(number)
        curve.append({"probes": number, "seconds": time.perf_counter() - started, "spearman": spearman(value, truth)})
    return curve


def plain(model: nn.Module, batches: Any, numbers: list[int], factors: Tensor, truth: Tensor) -> Curve:
    """Return the curve of the published procedure, its running mean."""
    torch.manual_seed(0)
    started = time.perf_counter()
    means: Iterator[tuple[int, Tensor]] = PlainHap(model, *batches[0]).means(numbers)
    return [
        {"probes": n, "seconds": time.perf_counter() - started, "spearman": spearman(mean * factors, truth)}
        for n, mean in means
    ]


def stopping(claims: Claims, model: nn.Module, batches: Any) -> None:
    """Show 6: `until` stops with the removed set of `exact`, up to units within the stated error of the threshold."""
    decide = lowest(0.5)
    exact = trace(model, batches, "exact")
    drawn = trace(model, batches, "rademacher", until=Until(removed=decide, confidence=0.95))
    claims.add("until: settled", f"{drawn.num_probes} draws", "settled", holds=bool(drawn.settled))
    ours, theirs = (joined(dict(decide(result.values))) for result in (drawn, exact))
    values, errors = joined(drawn.values), joined(drawn.standard_error or {})
    threshold = values[ours].max()
    outside = (ours != theirs) & ((values - threshold).abs() > 3 * errors)
    claims.at_least("until: share of channels decided as by exact", float((ours == theirs).double().mean()), 0.95)
    claims.at_most("until: differing channels beyond 3 standard errors of the threshold", int(outside.sum()), 0)


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Draw rank correlation over seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot([p["seconds"] for p in curve], [p["spearman"] for p in curve], marker="o", label=name)
    axes.set(xscale="log", xlabel="seconds", ylabel="rank correlation with the exact saliency", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
