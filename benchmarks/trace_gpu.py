"""Claims: on a GPU, FP16 probes take a third of the time and half of the memory of the published procedure in FP32.

n = 336 lossless CIFAR-10 images in one batch; pretrained ResNet-32 and ResNet-56, WRN-28-8 with random weights, where
only time and memory are compared. The published procedure runs as torch runs FP32 by default, its convolutions in TF32,
with cuDNN's choice of algorithms and with measured ones, and without TF32; the best of its figures counts. Times of
`exact` and of one `rademacher` draw stand beside that of a training step, for a further batch.
Accuracy is that after pruning to 70 % of the MACs with compensation, without fine-tuning, on images that pruning has
not seen, over 3 seeds. Without a GPU there is nothing to measure.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.curvature import TraceOptions, block_traces
from hessprune.lab.data import Dataset, load_dataset
from hessprune.lab.models import build_model
from support.claims import Claims, arguments
from support.hap import PlainHap
from support.networks import MEAN, STD, channels, images, pretrained, probes, warmed

PROBES, PLAIN_PROBES = 40, 3
PLAIN = {  # run: TF32, whether cuDNN tries its algorithms
    "plain probe": (True, False),
    "plain probe, cuDNN tuned": (True, True),
    "plain probe, no TF32": (False, False),
}
Batches = list[tuple[Tensor, Tensor]]
Measured = dict[str, tuple[float, int]]
"""Seconds, and bytes beyond model and images."""


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hessprune").setLevel(logging.INFO)  # says where no CUDA graph could be recorded
    if torch.cuda.is_available():
        compare(claims, options, "cuda", "fp16")
    else:
        claims.add("FP16 probes on a GPU", "there is no GPU here: nothing was measured", ">= 3", holds=None)
        claims.write(options.out)


def compare(claims: Claims, options: argparse.Namespace, device: str, precision: str) -> None:
    """Measure all networks; what is known is written after each, since a run may end early."""
    inputs, targets = images(options.data_root)
    batches = [(inputs.to(device), targets.to(device))]
    depths, seeds = ((32,), 1) if options.quick else ((32, 56), 3)
    networks = {f"resnet{depth}": pretrained(depth, options.data_root).to(device) for depth in depths}
    wide = {} if options.quick else {"wrn28-8": warmed(build_model("wrn28-8", num_classes=10)).to(device)}
    measurements: dict[str, Measured] = {}
    for name, model in {**networks, **wide}.items():
        measurements[name] = found = time_and_memory(model, batches)
        print(name, {run: f"{s * 1e3:.2f} ms, {size / 2**20:.0f} MB" for run, (s, size) in found.items()}, flush=True)
        half, step = found[f"{precision} probe"], found["training step"][0]
        seconds, size = map(min, zip(*(value for run, value in found.items() if run in PLAIN), strict=True))
        claims.at_least(f"{name}: plain FP32 probe / {precision} probe", seconds / half[0], 3, peer=seconds)
        claims.at_most(f"{name}: memory of {precision} / plain FP32", half[1] / size, 0.5, peer=size)
        for run, bound in (("rademacher", 1.5), ("exact", 7)):
            claims.at_most(f"{name}: {run} / training step", found[run][0] / step, bound, peer=step)
        claims.write(options.out, measurements=measurements)
    for name, model in networks.items():
        accuracy(claims, name, model, options, precision, seeds)
        claims.write(options.out, measurements=measurements)


def time_and_memory(model: nn.Module, batches: Batches) -> Measured:
    """Return seconds and memory of each kind of trace on one batch, without what it takes to set up the first."""

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()

    found = {"training step": measured(step)}
    model.zero_grad(set_to_none=True)
    for estimator in ("rademacher", "exact"):
        options = TraceOptions(num_probes=1) if estimator == "rademacher" else None
        found[estimator] = increment(
            lambda number, e=estimator, o=options: block_traces(
                model, channels(model), batches * number, estimator=e, options=o
            ),
            (1, 4),
        )
    for run, (tf32, benchmark) in PLAIN.items():
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32, benchmark=benchmark):
            found[run] = plain_probe(model, batches)
    for precision in ("fp32", "bf16", "fp16"):
        found[f"{precision} probe"] = increment(
            lambda number, p=precision: probes(model, batches, number, p), (PROBES // 4, PROBES)
        )
    return found


def increment(run: Callable[[int], object], numbers: tuple[int, int]) -> tuple[float, int]:
    """Return the seconds of one more batch or probe, and the memory that the larger number takes."""
    few, many = (measured(lambda n=number: run(n)) for number in numbers)
    return (many[0] - few[0]) / (numbers[1] - numbers[0]), many[1]


def plain_probe(model: nn.Module, batches: Batches) -> tuple[float, int]:
    """Return seconds of a probe of the published procedure, and what it and the graph it needs take."""
    memory = measured(lambda: PlainHap(model, *batches[0]).probe())[1]
    procedure = PlainHap(model, *batches[0])
    return measured(lambda: [procedure.probe() for _ in range(PLAIN_PROBES)])[0] / PLAIN_PROBES, memory


def measured(run: Callable[[], object]) -> tuple[float, int]:
    """Return the seconds of the second of two runs, and how far its memory rose above what was there before."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated(), time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - before


def accuracy(
    claims: Claims, name: str, model: nn.Module, options: argparse.Namespace, precision: str, seeds: int
) -> None:
    """Compare what is left after pruning by probes in either precision, over seeds of probes and calibration images."""
    differences = []
    for seed in range(seeds):
        data = load_dataset("npz", root=options.data_root, calibration_size=512, seed=seed)
        data = data.with_normalisation(MEAN, STD)
        found = [accuracy_after(model, data, seed, kind) for kind in ("fp32", precision)]
        print(name, "seed", seed, *(f"{value:.4f}" for value in found))
        differences.append(found[1] - found[0])
    error = statistics.stdev(differences) / seeds**0.5 if seeds > 1 else 0.0
    loss = -statistics.mean(differences)
    claims.at_most(f"{name}: accuracy lost to {precision}, mean of {seeds} seeds", loss, max(2 * error, 0.01), error)


def accuracy_after(model: nn.Module, data: Dataset, seed: int, precision: str) -> float:
    """Return the accuracy of the pruned model on images that pruning has not seen."""
    method = hp.HAP(estimator="hutchinson", num_probes=PROBES, precision=precision)
    example, budget = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device), hp.Budget(macs=0.7)
    batches = data.batches("calibration", 512, shuffle=False)
    pruned = hp.prune(model, example, batches, budget=budget, method=method, seed=seed).model
    return hp.evaluate(pruned, data.batches("test", 512, shuffle=False)).accuracy


if __name__ == "__main__":
    main()
