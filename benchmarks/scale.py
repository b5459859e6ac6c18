"""Claims: what a whole `hp.prune` costs on ImageNet-size networks, what a second budget costs, and that memory is kept.

torchvision's ResNet-50, ViT-B/16 and ConvNeXt-T with untrained weights, random images of 224 x 224 (the cost does not
depend on either), half of the MACs, the default method, 256 images in batches of 16, two threads. Seconds are processor
time, so that other work on the machine matters little; the unit is one forward and backward pass over the same images,
timed in the same process. `phases` says where the time goes. Beside them `magnitude` without compensation, with
Torch-Pruning 1.6.1 and torch-kirigami 0.2.1 in turns. Then a linear layer of 16 384 inputs, under a limit and
without, and the accuracy of the pretrained ResNet-20 compensated by moments, by passes, and not at all.
A quick run takes MobileNet-V3-S, 8 images of 64 x 64, a layer of 4 096 and no other tools. What is on record under
`--out` is kept, so that a stopped run goes on; `--parts` and `--models` pick.
"""

import argparse
import copy
import importlib
import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.files import sha256
from support.claims import Claims, arguments
from support.memory import NoAnswerError, Peak, in_a_process
from support.networks import images, pretrained
from support.rivals import INSTALLED
from support.zoo import build

MODELS = ("resnet50", "vit_b_16", "convnext_tiny")
PARTS = ("whole", "magnitude", "wide", "accuracy")
LIMIT_S = 4 * 3600
BATCH, HALF, OTHER = 16, hp.Budget(macs=0.5), hp.Budget(macs=0.7)
PHASES = {
    "groups": "pruning.task:find_groups",
    "statistics": "curvature.elimination_path:measure_reading_layers",
    "elimination": "curvature.elimination_path:_eliminate",
    "losses": "curvature.elimination_path:measure_changes",
    "plan": "pruning.prune:plan_in_steps",
    "surgery": "pruning.recovery:apply_plan",
    "refit": "pruning.recovery:compensate",
    "batchnorm": "pruning.recovery:reestimate_batchnorm",
}
"""Functions whose time is stated, by the place where they are called."""


def more_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", default=None)
    parser.add_argument("--images", type=int, default=None, help="256, or 8 in a quick run")


def main() -> None:
    options, claims = arguments(__doc__, more_arguments), Claims()
    records = earlier(options.out)
    models = options.models or (("mobilenet_v3_small",) if options.quick else MODELS)
    number, size = options.images or (8 if options.quick else 256), 64 if options.quick else 224
    setting = {"threads": options.threads, "images": number, "size": size}
    for name in models if "whole" in options.parts else ():
        run(options, records, f"whole {name}", partial(whole, name, number, size, options.threads), setting)
    for name in models if "magnitude" in options.parts else ():
        for tool in ("hessprune", *(() if options.quick else INSTALLED)):
            run(options, records, f"magnitude {name} {tool}", partial(by_magnitude, tool, name, size, options.threads))
    width, limit = (4096, 400_000_000) if options.quick else (16384, 2_000_000_000)  # of 8 K² there are four at a time
    for bound in (limit, None) if "wide" in options.parts else ():
        run(options, records, f"wide {width} {bound}", partial(wide, width, bound, options.threads))
    if "accuracy" in options.parts:
        shares = (0.5,) if options.quick else (0.7, 0.5, 0.35)
        run(options, records, "accuracy", partial(accuracy, options.data_root, shares, options.threads))
    judge(claims, records, models, width, limit)
    claims.write(options.out, records=records)


def run(
    options: Namespace,
    records: dict[str, Any],
    name: str,
    function: Callable[[], dict[str, Any]],
    setting: dict[str, Any] | None = None,
) -> None:
    """Measure in a process of its own what is not on record, and keep it."""
    if name not in records:
        try:
            records[name] = (setting or {}) | in_a_process(function, limit_s=LIMIT_S)
        except NoAnswerError as error:
            records[name] = {"error": str(error)}
        Claims().write(options.out, records=records)
    print(name, records[name], flush=True)


def earlier(path: Path | None) -> dict[str, Any]:
    """Return the records of an earlier run."""
    return json.loads(path.read_text("utf-8"))["records"] if path is not None and path.exists() else {}


def whole(name: str, number: int, size: int, threads: int) -> dict[str, Any]:
    """Prune to half of the MACs; then measure once, and plan two budgets from that."""
    torch.set_num_threads(threads)
    model, batches = network(name, number, size)
    unit = passes(model, batches)
    found: dict[str, Any] = {"forward_backward_s": round(unit, 2)}
    phases: dict[str, float] = {}
    peak = Peak()
    with timed(phases):
        seconds, result = spent(lambda: hp.prune(model, batches[0][:1], batches, budget=HALF))
    found |= {"prune_s": round(seconds, 2), "ratio": round(seconds / unit, 2), "peak_gb": round(peak.stop() / 1e9, 2)}
    found["phases"] = {phase: round(value / unit, 3) for phase, value in phases.items()}
    found["macs_kept"] = round(result.plan.kept_fraction("macs"), 4)
    measured, stats = spent(lambda: hp.measure(model, batches[0][:1], batches))
    first, again = spent(lambda: hp.prune(model, batches[0][:1], batches, budget=HALF, stats=stats))
    second, _ = spent(lambda: hp.prune(model, batches[0][:1], batches, budget=OTHER, stats=stats))
    found |= {"measure_s": round(measured, 2), "first_s": round(measured + first, 2), "second_s": round(second, 2)}
    found |= {"statistics_gb": round(stats.num_bytes / 1e9, 3), "same_plan": again.plan.removed == result.plan.removed}
    return found | {"second_share": round(second / (measured + first), 4)}


def by_magnitude(tool: str, name: str, size: int, threads: int) -> dict[str, Any]:
    """Prune by magnitude, without compensation, by one of the tools."""
    torch.set_num_threads(threads)
    model, (x,) = network(name, 1, size)
    if tool == "hessprune":
        seconds, _ = spent(lambda: hp.prune(model, x, [x], budget=HALF, method="magnitude", compensate=False))
        return {"seconds": round(seconds, 2)}
    try:
        seconds, _ = spent(lambda: INSTALLED[tool](copy.deepcopy(model), x))
    except Exception as error:  # whatever another tool raises is what it answers
        return {"error": f"{type(error).__name__}: {str(error)[:100]}"}
    return {"seconds": round(seconds, 2)}


def wide(width: int, limit: int | None, threads: int) -> dict[str, Any]:
    """Prune a network with one wide layer under a limit of memory."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 64)).eval()
    x, peak = torch.randn(256, 64), Peak(own=True)
    method = hp.Joint(refit=True, memory_limit=limit)
    seconds, result = spent(lambda: hp.prune(net, x[:1], [x], budget=HALF, method=method, compensate=False))
    removed = sha256(str(result.plan.removed))
    return {"limit": limit, "seconds": round(seconds, 1), "own_bytes": peak.stop(), "removed_sha256": removed}


def accuracy(root: Path, shares: tuple[float, ...], threads: int) -> dict[str, Any]:
    """Return the accuracy of the ResNet-20 on images that pruning has not seen, by the way of its compensation."""
    torch.set_num_threads(threads)
    dense, (x, y) = pretrained(20, root), images(root, 1200)
    batches, unseen = [*x[:512].split(64)], (x[512:], y[512:])
    stats = hp.measure(dense, x[:1], batches)
    found: dict[str, Any] = {"dense": accuracy_of(dense, *unseen)}
    for share in shares:
        budget = hp.Budget(macs=share)
        kept = hp.prune(dense, x[:1], batches, budget=budget, stats=stats)
        models = {"moments": kept.model, "none": hp.apply_plan(dense, kept.plan)}
        models["passes"] = hp.prune(dense, x[:1], batches, budget=budget).model
        found[str(share)] = {way: accuracy_of(model, *unseen) for way, model in models.items()}
    return found


@torch.no_grad()
def accuracy_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return round(float((model(x).argmax(1) == y).double().mean()), 4)


def judge(claims: Claims, records: dict[str, Any], models: Any, width: int, limit: int) -> None:
    """State the claims on what is on record."""
    for name in models:
        if (found := records.get(f"whole {name}")) and "ratio" in found:
            images = f"{name}, {found['images']} images"
            claims.at_most(f"{images}: hp.prune / one forward and backward pass", found["ratio"], 3)
            claims.at_most(f"{images}: peak memory, GB", found["peak_gb"], 12)
            claims.at_most(f"{images}: second budget / first call", found["second_share"], 0.1)
        if found := records.get(f"magnitude {name} hessprune"):
            peers = {tool: records.get(f"magnitude {name} {tool}", {}) for tool in INSTALLED}
            shown = ", ".join(f"{tool} {peer['seconds']}" for tool, peer in peers.items() if "seconds" in peer)
            claims.at_most(f"{name}: magnitude without compensation, s", found["seconds"], 15, peer=shown or None)
    for share, found in records.get("accuracy", {}).items():
        if isinstance(found, dict):
            name = f"ResNet-20, {share} of the MACs: accuracy by moments less that without compensation"
            claims.at_least(name, found["moments"] - found["none"], 0, peer=found)
    tight, free = (records.get(f"wide {width} {bound}") for bound in (limit, None))
    if tight and free:
        same = tight["removed_sha256"] == free["removed_sha256"]
        claims.at_least(f"{width} inputs: 1 if the plan under {limit / 1e9:.3g} GB is the same", float(same), 1)
        claims.at_most(f"{width} inputs: memory of its own / limit", tight["own_bytes"] / limit, 1, free["own_bytes"])


def network(name: str, number: int, size: int) -> tuple[nn.Module, list[Tensor]]:
    """Return an untrained model, and random images in batches."""
    torch.manual_seed(0)
    model, _ = build("torchvision", name, 1)
    return model, [*torch.randn(number, 3, size, size).split(BATCH)]


def passes(model: nn.Module, batches: list[Tensor]) -> float:
    """Return the seconds of one forward and backward pass over all images, after a first one over some."""

    def every(part: list[Tensor]) -> None:
        for x in part:
            model(x).square().mean().backward()
        model.zero_grad()

    every(batches[:1])
    return spent(lambda: every(batches))[0]


def spent(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of a call, of all threads, and what it returns."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


@contextmanager
def timed(phases: dict[str, float]) -> Iterator[None]:
    """Add the processor time of each of `PHASES` up while the block runs."""

    def counting(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            seconds, result = spent(lambda: function(*args, **options))
            phases[phase] = phases.get(phase, 0.0) + seconds
            return result

        return call

    with ExitStack() as stack:
        for phase, place in PHASES.items():
            module, _, attribute = place.partition(":")
            owner = importlib.import_module(f"hessprune.{module}")
            stack.enter_context(patch.object(owner, attribute, counting(phase, getattr(owner, attribute))))
        yield


if __name__ == "__main__":
    main()
