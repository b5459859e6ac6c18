"""Claims: `exact` and `rademacher` need a fraction of the memory of the published procedure, and keep to any limit.

n = 336 lossless CIFAR-10 images (84 in a quick run) in one batch, pretrained ResNet-20 and ResNet-56. Each run has a
process of its own; its figure is how far the resident set grew at most beyond what the model and the images take.
"""

from multiprocessing.connection import Connection
from pathlib import Path

import torch

from hessprune.curvature import TraceOptions, block_traces
from support.claims import Claims, arguments
from support.hap import PlainHap
from support.memory import Peak, in_a_process, resident
from support.networks import channels, images, pretrained

LIMIT = 64 << 20


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    number = 84 if options.quick else 336
    for depth in (20,) if options.quick else (20, 56):
        name = f"resnet{depth}"
        peak = {
            run: in_a_process(measure, run, depth, options.data_root, options.threads, number)
            for run in ("plain", "exact", "rademacher", "limited exact", "limited rademacher", "batch by batch")
        }
        print(name, {run: f"{size / 2**20:.0f} MB" for run, size in peak.items()})
        for estimator in ("exact", "rademacher"):
            claims.at_most(f"{name}: {estimator} / plain HAP", peak[estimator] / peak["plain"], 0.6, peer=peak["plain"])
            claims.at_most(f"{name}: {estimator} / its limit of 64 MB", peak[f"limited {estimator}"] / LIMIT, 1.0)
        growth = peak["batch by batch"] / peak["exact"]
        claims.at_most(f"{name}: {number // 16} batches of 16 / one batch of all", growth, 1.2)
    claims.write(options.out)


def measure(sender: Connection, run: str, depth: int, root: Path, threads: int, number: int) -> None:
    torch.set_num_threads(threads)
    model, (inputs, targets) = pretrained(depth, root), images(root, number)
    model(inputs[:2])  # what any use of the model takes is not counted
    before, peak = resident(), Peak()
    if run == "plain":
        PlainHap(model, inputs, targets).probe()
    else:
        estimator = run.removeprefix("limited ") if run != "batch by batch" else "exact"
        limit = LIMIT if run.startswith("limited") else None
        size = 16 if run == "batch by batch" else len(inputs)
        batches = list(zip(inputs.split(size), targets.split(size), strict=True))
        options = TraceOptions(num_probes=1, memory_limit=limit)
        block_traces(model, channels(model), batches, estimator=estimator, options=options)
    sender.send(peak.stop() - before)


if __name__ == "__main__":
    main()
