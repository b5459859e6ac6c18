"""The cost of the saliency of `joint`, and of a whole prune, in training steps over the same samples.

Processor seconds of one thread, each as a ratio to the floor: one forward and backward pass over the same samples in
the same batches, the faster of two. A BERT of MiniLM's size (6 layers, width 384, 12 heads) reads n = 64 sentences of
48 tokens, a ResNet-50 n = 32 images of 224 × 224 pixels for 1000 classes; untrained weights and random inputs, half of
the MACs to go. In a quick run, two layers of width 128 and a ResNet-18 on 8 images of 64 × 64: there, what does not
depend on samples weighs more. Memory is how far the resident set of a fresh process grows at most.

`--before` takes the JSON of this script at an earlier version (it uses nothing but the public functions), whose ratios
become the peers. What the file `--out` holds is not measured again. Packages that are not installed are skipped by name
(pip install --no-deps torchvision transformers).
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from support.claims import Claims, arguments
from support.memory import Peak, in_a_process
from support.zoo import build, define_operators

BOUNDS = {"saliency": 4.0, "prune": 12.0}
QUICK_BOUND = 200.0
PACKAGES = {"bert": "transformers", "resnet50": "torchvision"}
Data = list[tuple[Any, Tensor]]


def main() -> None:
    options, claims = arguments(__doc__, more_arguments), Claims()
    before, rows = rows_of(options.before), rows_of(options.out)
    for net, stage in itertools.product(options.only or PACKAGES, BOUNDS):
        bound = QUICK_BOUND if options.quick else BOUNDS[stage]
        name = f"{net}{', quick' * options.quick}: processor seconds of {stage} / training step"
        if importlib.util.find_spec(PACKAGES[net]) is None:
            claims.add(name, f"{PACKAGES[net]} is not installed", f"<= {bound:g}", holds=None)
            continue
        case = (net, stage, options.quick)
        if case not in rows:
            row = {"net": net, "stage": stage, "quick": options.quick, **in_a_process(measured, *case)}
            rows[case] = row
            print(row, flush=True)
        claims.at_most(name, rows[case]["ratio"], bound, peer=before.get(case, {}).get("ratio"))
        claims.write(options.out, rows=list(rows.values()), before=list(before.values()))


def rows_of(path: Path | None) -> dict[tuple[str, str, bool], dict[str, Any]]:
    """Return what an earlier run measured, to go on from there."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path is not None and path.exists() else []
    return {(row["net"], row["stage"], row["quick"]): row for row in rows}


def more_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", type=Path, help="JSON of an earlier version, for comparison")
    parser.add_argument("--only", nargs="*", default=(), choices=PACKAGES, help="only these networks")


def measured(net: str, stage: str, quick: bool) -> dict[str, Any]:
    """Return the seconds of a stage and of a training step, their ratio, and the memory of both."""
    torch.set_num_threads(1)
    model, data = sentences(quick) if net == "bert" else pictures(quick)
    step, step_bytes = watched(lambda: train(model, data))
    step = min(step, watched(lambda: train(model, data))[0])
    example = data[0][0]
    groups = hp.find_groups(model, example) if stage == "saliency" else []
    stages: dict[str, Callable[[], Any]] = {
        "saliency": lambda: hp.saliency(model, groups, data, "joint"),
        "prune": lambda: hp.prune(model, example, data, budget=hp.Budget(macs=0.5)),
    }
    seconds, used = watched(stages[stage])
    samples = sum(len(targets) for _, targets in data)
    counts = {"samples": samples, "seconds": seconds, "step_seconds": step, "ratio": seconds / step}
    return {**counts, "bytes": used, "step_bytes": step_bytes}


def watched(run: Callable[[], object]) -> tuple[float, int]:
    """Return the processor seconds and the memory of a run."""
    peak, started = Peak(), time.process_time()
    run()
    return time.process_time() - started, peak.stop()


def train(model: nn.Module, data: Data) -> None:
    """Run forward and backward over all samples once."""
    for inputs, targets in data:
        output = model(**inputs).logits if isinstance(inputs, dict) else model(inputs)
        F.cross_entropy(output, targets).backward()
    model.zero_grad()


def sentences(quick: bool) -> tuple[nn.Module, Data]:
    """Return a BERT of MiniLM's size with two classes, and sentences of random tokens."""
    define_operators()  # for torchvision, which transformers imports
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    layers, width = (2, 128) if quick else (6, 384)
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=12 if not quick else 4,
        intermediate_size=4 * width, num_labels=2,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    length, batch, number = (16, 8, 16) if quick else (48, 32, 64)
    tokens, labels = torch.randint(1000, 30000, (number, length)), torch.arange(number) % 2
    return model, [
        ({"input_ids": part}, targets) for part, targets in zip(tokens.split(batch), labels.split(batch), strict=True)
    ]


def pictures(quick: bool) -> tuple[nn.Module, Data]:
    """Return a ResNet for 1000 classes, and random images."""
    torch.manual_seed(0)
    model = build("torchvision", "resnet18" if quick else "resnet50", 1)[0]
    number, size = (8, 64) if quick else (32, 224)
    images, labels = torch.randn(number, 3, size, size), torch.randint(1000, (number,))
    return model, list(zip(images.split(8), labels.split(8), strict=True))


if __name__ == "__main__":
    main()
