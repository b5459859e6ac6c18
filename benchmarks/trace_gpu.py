"""Claims: on a GPU, FP16 probes take a third of the time and half of the memory of the published procedure in FP32.

n = 336 lossless CIFAR-10 images in one batch; pretrained ResNet-32 and ResNet-56, WRN-28-8 as it is initialised, where
only time and memory are compared. Accuracy is that after pruning to 70 % of the MACs with compensation, without
fine-tuning, on images that pruning has not seen, over 3 seeds. Without a GPU there is nothing to measure.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.data import Dataset, load_dataset
from hessprune.models import build_model
from support.claims import Claims, arguments
from support.hap import PlainHap
from support.networks import MEAN, STD, images, pretrained, probes

PROBES = 100
Batches = list[tuple[Tensor, Tensor]]


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    if torch.cuda.is_available():
        compare(claims, options, "cuda", "fp16")
    else:
        claims.add("FP16 probes on a GPU", "there is no GPU here: nothing was measured", ">= 3", holds=None)
    claims.write(options.out)


def compare(claims: Claims, options: argparse.Namespace, device: str, precision: str) -> None:
    """Measure all networks."""
    inputs, targets = images(options.data_root)
    batches = [(inputs.to(device), targets.to(device))]
    depths, seeds = ((32,), 1) if options.quick else ((32, 56), 3)
    networks = {f"resnet{depth}": pretrained(depth, options.data_root).to(device) for depth in depths}
    wide = build_model("wrn28-8", num_classes=10).eval().to(device)
    for name, model in {**networks, "wrn28-8": wide}.items():
        time_and_memory(claims, name, model, batches, precision)
    for name, model in networks.items():
        accuracy(claims, name, model, options, precision, seeds)


def time_and_memory(claims: Claims, name: str, model: nn.Module, batches: Batches, precision: str) -> None:
    """Compare one probe's seconds, set-up taken out, and the most memory beyond model and images."""
    plain = plain_probes(model, batches)
    half = {number: measured(lambda n=number: probes(model, batches, n, precision)) for number in (PROBES, 2 * PROBES)}
    seconds = (half[2 * PROBES][0] - half[PROBES][0]) / PROBES
    claims.at_least(f"{name}: plain FP32 probe / {precision} probe", plain[0] / seconds, 3, peer=plain[0])
    claims.at_most(f"{name}: memory of {precision} / plain FP32", half[PROBES][1] / plain[1], 0.5, peer=plain[1])


def plain_probes(model: nn.Module, batches: Batches) -> tuple[float, int]:
    """Return seconds per probe and bytes of the published procedure."""
    memory = measured(lambda: PlainHap(model, *batches[0]).probe())[1]
    procedure = PlainHap(model, *batches[0])
    return measured(lambda: [procedure.probe() for _ in range(PROBES)])[0] / PROBES, memory


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
    options = hp.TraceOptions(num_probes=PROBES)
    settings = hp.Settings(seed=seed, estimator="hutchinson", precision=precision, options=options)
    example, budget = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device), hp.Budget(macs=0.7)
    batches = data.batches("calibration", 512, shuffle=False)
    pruned = hp.prune(model, example, batches, budget=budget, settings=settings).model
    return hp.evaluate(pruned, data.batches("test", 512, shuffle=False)).accuracy


if __name__ == "__main__":
    main()
