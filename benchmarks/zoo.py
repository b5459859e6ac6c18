"""Claims: other people's classifiers lose half of their MACs with the defaults, or are refused by name.

All of torchvision, and the smallest of each of timm's families; untrained weights, inputs of each model's own size,
half of the MACs by magnitude, one thread and one process per model. A model counts as pruned where the smaller one has
passed the proof that slicing equals masking, and has the MACs that the plan predicted. A refusal is an error of the
library's own, which says what to do. The peer is Torch-Pruning, asked for half of the channels of each group; it counts
as pruned where the result runs and has fewer MACs, right or wrong.
Packages that are not installed are skipped by name (pip install --no-deps torchvision timm torch-pruning).
"""

import argparse
import importlib
import importlib.util
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hessprune as hp
from support.claims import Claims, arguments, environment
from support.memory import NoAnswerError, Peak, in_a_process
from support.zoo import SOURCES, build

LIMIT_S, BATCH = 240, 2
QUICK = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "deit_tiny_patch16_224")
PEER = "torch_pruning"


def main() -> None:
    options, claims = arguments(__doc__, more_arguments), Claims()
    records = earlier(options.out)
    for source, names in SOURCES.items():
        if importlib.util.find_spec(source) is None:
            claims.add(f"{source}: pruned or refused by name", f"{source} is not installed", "all", holds=None)
            continue
        only = options.models or (QUICK if options.quick else names)
        for name in (name for name in names if name in only):
            look_at(records.setdefault(f"{source}/{name}", {}), source, name, options)
            claims.write(options.out, models=records)
        found = [record for key, record in records.items() if key.startswith(f"{source}/")]
        if found:
            conclude(claims, source, found)
        claims.write(options.out, models=records)


def more_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="*", default=(), help="only these, by name")
    parser.add_argument("--no-peer", action="store_true", help="leave Torch-Pruning out")


def earlier(out: Path | None) -> dict[str, dict[str, Any]]:
    """Return what an earlier run wrote, to go on from there; hours of work."""
    found = json.loads(out.read_text("utf-8")) if out is not None and out.exists() else {}
    same = found.get("environment", {}).get("versions") == environment()["versions"]
    return found["models"] if same else {}


def look_at(record: dict[str, Any], source: str, name: str, options: argparse.Namespace) -> None:
    """Add to `record` what becomes of one model, by us and by the peer."""
    tools = {"ours": prune}
    if not options.no_peer and importlib.util.find_spec(PEER):
        tools["peer"] = prune_by_peer
    for tool, function in tools.items():
        if tool in record:
            continue
        try:
            record[tool] = in_a_process(attempt, function, source, name, limit_s=LIMIT_S)
        except (NoAnswerError, EOFError) as error:
            record[tool] = {"outcome": "no answer", "why": str(error) or "the process died"}
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in record[tool].items()}
        print(f"{source}/{name}", tool, shown, flush=True)


def conclude(claims: Claims, source: str, records: list[dict[str, Any]]) -> None:
    """Claim that all models were pruned or refused, and more of them than by the peer."""
    ours = [record["ours"]["outcome"] for record in records]
    answered = sum(outcome in {"pruned", "refused"} for outcome in ours)
    claims.at_least(f"{source}: models pruned or refused by name", answered, len(ours))
    peers = [record["peer"]["outcome"] for record in records if "peer" in record]
    number = peers.count("pruned") if peers else None
    claims.at_least(f"{source}: models pruned, of {len(ours)}", ours.count("pruned"), number or 0, peer=number)
    seconds = [record["ours"]["seconds"] for record in records if record["ours"]["outcome"] == "pruned"]
    if seconds:
        claims.at_most(f"{source}: median seconds of what was pruned", statistics.median(seconds), 60)


def attempt(function: Any, source: str, name: str) -> dict[str, Any]:
    """Build a model, prune it, and say what happened; runs in a process of its own."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model, example = build(source, name, BATCH)
    peak, started = Peak(), time.perf_counter()
    try:
        found = function(model, example)
    except hp.HessPruneError as error:
        found = {"outcome": "refused", "why": str(error)}
    except Exception as error:  # whatever another library raises
        found = {"outcome": "failed", "why": f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]}
    return {**found, "seconds": time.perf_counter() - started, "memory_mb": peak.stop() / 2**20}


def prune(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Prune with the defaults; `apply_plan` proves the result."""
    groups = hp.find_groups(model, example)
    values = hp.saliency(model, groups, [(example, torch.zeros(BATCH, dtype=torch.long))], "magnitude")
    try:
        plan = hp.make_plan(model, groups, values, hp.Budget(macs=0.5), example_inputs=example)
    except hp.errors.BudgetError as error:  # half is more than may go
        return {"outcome": "refused", "why": str(error), "groups": len(groups)}
    smaller = hp.apply_plan(model, plan, example_inputs=example)
    kept = hp.cost(smaller, example).macs / plan.cost_before.macs
    return {"outcome": "pruned", "macs_kept": kept, "groups": len(groups)}


def prune_by_peer(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Prune by Torch-Pruning as its documentation does: by magnitude, every group by half, but for the classes."""
    peer = importlib.import_module(PEER)
    before = hp.cost(model, example).macs
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    pruner = peer.pruner.MagnitudePruner(
        model, example, importance=peer.importance.MagnitudeImportance(p=2), pruning_ratio=0.5, ignored_layers=[last]
    )
    pruner.step()
    with torch.no_grad():
        model(example)
    kept = hp.cost(model, example).macs / before
    return {"outcome": "pruned" if kept < 1 else "unchanged", "macs_kept": kept}


if __name__ == "__main__":
    main()
