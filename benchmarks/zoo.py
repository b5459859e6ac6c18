"""Claims: other people's models lose half of their MACs with the defaults, or are refused by name; none goes wrong.

Every classifier of torchvision, the smallest of each of timm's families, and 25 architectures of Hugging Face from
small configs; untrained weights, half of the MACs by magnitude (or as much as may go, where that is less: `macs_kept`
says it), one thread and one process per model. Beside it stand Torch-Pruning 1.6.1 and torch-kirigami 0.2.1, asked for
half of the channels of every group. Each tool has the same processor time and memory; a tool's own proof of its result
does not count. The proof is ours and the same for all: the numbers that a result kept are found by their values, and
its outputs must be those of the dense model with zeros in the place of all others (a layer norm of kept channels counts
as it is meant). The outcomes: `pruned`; `refused`, by an error of the tool's own; `crashed`, by another error; `wrong`,
by our proof; `unchanged`; `no answer` within the limits.
What is on record under `--out` from the same versions is kept. Packages that are not installed are skipped by name:
pip install timm transformers; pip install --no-deps torchvision torch-pruning torch-kirigami. Beside a CPU build of
torch, torchvision needs three operators that it does not find (`nms`, `qnms`, `roi_align`); the script stubs them.
"""

import argparse
import copy
import importlib.util
import json
import logging
import os
import re
import resource
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import nn

import hessprune as hp
from support import huggingface, rivals
from support.claims import Claims, arguments, environment
from support.kept import UnknownNumbersError, difference, mark
from support.memory import NoAnswerError, Peak, in_a_process, resident
from support.zoo import SOURCES, build

LIMIT_S, LIMIT_GB, BATCH, TOLERANCE = 60, 12, 2, 1e-4
GROUPS_S, GROUPS_GB = 20, 8
LEAST = re.compile(r"at least macs=(0\.\d+)")
QUICK = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "deit_tiny_patch16_224", "bert")
OUTCOMES = ("pruned", "refused", "unchanged", "no answer", "crashed", "wrong")
Found = dict[str, Any]


def main() -> None:
    options, claims = arguments(__doc__, more_arguments), Claims()
    records = earlier(options.out)
    for tool in options.tools:
        wanted = [(source, name) for source, names in SOURCES.items() if is_installed(source) for name in names]
        wanted = [each for each in wanted if each[1] in (options.models or (QUICK if options.quick else [each[1]]))]
        for source, name in track(wanted, description=tool):
            record = records.setdefault(f"{source}/{name}", {})
            if tool not in record:
                record[tool] = tried(tool, source, name)
                print(f"{source}/{name}", tool, record[tool], flush=True)
                write(options.out, Claims(), records)
    for source in SOURCES:
        found = [record for key, record in records.items() if key.startswith(f"{source}/") and "hessprune" in record]
        if found:
            conclude(claims, source, found)
        else:
            reason = "none tried yet" if is_installed(source) else f"{source} is not installed"
            claims.add(f"{source}: pruned or refused by name", reason, "all", holds=None)
    write(options.out, claims, records)


def more_arguments(parser: argparse.ArgumentParser) -> None:
    tools = ["hessprune", *rivals.INSTALLED]
    parser.add_argument("--models", nargs="*", default=(), help="only these, by name")
    parser.add_argument("--tools", nargs="*", default=tools, choices=tools, help="only these")


def is_installed(source: str) -> bool:
    return importlib.util.find_spec(source) is not None


def write(out: Path | None, claims: Claims, records: dict[str, Found]) -> None:
    """Write the claims, how many models came to which end, and each model."""
    tools = dict.fromkeys(tool for record in records.values() for tool in record)
    counts = {
        source: {
            tool: {outcome: outcomes(records, source, tool).count(outcome) for outcome in OUTCOMES} for tool in tools
        }
        for source in SOURCES
    }
    claims.write(out, limits={"seconds": LIMIT_S, "gigabytes": LIMIT_GB}, counts=counts, models=records)


def outcomes(records: dict[str, Found], source: str, tool: str) -> list[str]:
    of_source = [record for key, record in records.items() if key.startswith(f"{source}/")]
    return [record[tool]["outcome"] for record in of_source if tool in record]


def earlier(out: Path | None) -> dict[str, Found]:
    """Return what an earlier run wrote, to go on from there; hours of work."""
    found = json.loads(out.read_text("utf-8")) if out is not None and out.exists() else {}
    same = found.get("environment", {}).get("versions") == environment()["versions"]
    return found["models"] if same else {}


def conclude(claims: Claims, source: str, records: list[Found]) -> None:
    """Claim what became of one source's models."""
    ours = [record["hessprune"] for record in records]
    ends = [found["outcome"] for found in ours]
    peers = {tool: [r[tool]["outcome"] for r in records if tool in r] for tool in rivals.RIVALS}
    peers = {tool: found for tool, found in peers.items() if found}
    claims.at_most(f"{source}: models pruned wrongly", ends.count("wrong"), 0, peer=counted(peers, "wrong"))
    claims.at_least(
        f"{source}: models pruned or refused by name", ends.count("pruned") + ends.count("refused"), len(ends)
    )
    bound = {"torchvision": 1.0, "timm": 0.9, "transformers": 0.9}[source] * len(ends)
    number, beside = ends.count("pruned"), counted(peers, "pruned")
    claims.at_least(f"{source}: models pruned, of {len(ends)}", number, bound, peer=beside)
    if source == "transformers":
        neurons = sum(found.get("neurons", False) for found in ours)
        claims.at_least(f"{source}: models whose feed-forward neurons are found", neurons, len(ends))
    slowest = max(found.get("groups_s", 0) for found in ours)
    claims.at_most(f"{source}: processor seconds of the slowest find_groups", slowest, GROUPS_S)
    largest = max(found.get("groups_mb", 0) for found in ours) / 1024
    claims.at_most(f"{source}: gigabytes that find_groups adds at most", largest, GROUPS_GB)


def counted(peers: dict[str, list[str]], outcome: str) -> str | None:
    return ", ".join(f"{tool} {ends.count(outcome)} of {len(ends)}" for tool, ends in peers.items()) or None


def tried(tool: str, source: str, name: str) -> Found:
    """Return what becomes of one model by one tool."""
    try:
        return in_a_process(attempt, tool, source, name, limit_s=20 * LIMIT_S)
    except NoAnswerError:
        return {"outcome": "no answer", "why": f"longer than {LIMIT_S} s of processor time"}
    except EOFError:  # the process was ended by its limits
        return {"outcome": "no answer", "why": f"more than {LIMIT_S} s of processor time or {LIMIT_GB} GB"}


def attempt(tool: str, source: str, name: str) -> Found:
    """Build a model, prune a copy, and say what happened; runs in a process of its own, with its limits."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    dense, example = build(source, name, BATCH)
    mark(dense)
    found: Found = {}
    limited(LIMIT_S)
    started, peak = time.process_time(), Peak()
    try:
        pruned = prune(dense, example, found, source, name) if tool == "hessprune" else by_rival(tool, dense, example)
    except Exception as error:  # whatever another library raises
        own = isinstance(error, hp.HessPruneError) or rivals.refuses(error)
        found |= {"outcome": "refused" if own else "crashed", "why": shown(error)}
        pruned = None
    found |= {"seconds": round(time.process_time() - started, 1), "memory_mb": peak.stop() >> 20}
    limited(resource.RLIM_INFINITY)
    if pruned is None:
        return found
    found |= proved(dense, pruned, example)
    if tool == "hessprune" and found["outcome"] == "wrong":
        found |= compared(dense, example)
    return found


def limited(seconds: int) -> None:
    """Let the process live for so many more seconds of processor time, and, while they count, with so much memory."""
    until = seconds if seconds == resource.RLIM_INFINITY else int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
    if until != resource.RLIM_INFINITY:
        threading.Thread(target=end_above, args=(LIMIT_GB << 30,), daemon=True).start()


def end_above(most: int) -> None:
    while resource.getrlimit(resource.RLIMIT_CPU)[0] != resource.RLIM_INFINITY:
        if resident() > most:
            os._exit(1)
        time.sleep(0.05)


def shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]


def prune(model: nn.Module, example: Any, found: Found, source: str, name: str) -> nn.Module:
    """Prune half of the MACs by magnitude; where that is more than may go, as much as may."""
    started, peak = time.process_time(), Peak()
    groups = hp.find_groups(model, example)
    found |= {
        "groups": len(groups),
        "groups_s": round(time.process_time() - started, 1),
        "groups_mb": peak.stop() >> 20,
    }
    if source == "transformers":
        owners = {piece.param for group in groups for piece in group.slices if piece.role == "producer"}
        found["neurons"] = huggingface.neurons_found(name, model, owners)
    return halved(model, example, groups)


def compared(model: nn.Module, example: Any) -> Found:
    """Prune what slicing and masking agree on, as `hp.prune` does; `apply_plan` had refused the rest."""
    try:
        groups = hp.find_groups(model, example, compare=True)
        return {"groups": len(groups), "compared": True} | proved(model, halved(model, example, groups), example)
    except hp.HessPruneError as error:
        return {"outcome": "refused", "why": shown(error)}


def halved(model: nn.Module, example: Any, groups: Any) -> nn.Module:
    values = hp.saliency(model, groups, [example], "magnitude")
    try:
        plan = hp.make_plan(model, groups, values, hp.Budget(macs=0.5), example_inputs=example)
    except hp.errors.BudgetError as error:  # half is more than may go: take what the message says can be reached
        least = LEAST.search(str(error))
        if least is None:
            raise
        budget = hp.Budget(macs=float(least[1]))
        plan = hp.make_plan(model, groups, values, budget, example_inputs=example)
    return hp.apply_plan(model, plan, check=False)


def by_rival(tool: str, dense: nn.Module, example: Any) -> nn.Module:
    return rivals.RIVALS[tool](copy.deepcopy(dense), example)


def proved(dense: nn.Module, pruned: nn.Module, example: Any) -> Found:
    """Say whether a result is the dense model without some units, by a mask that knows nothing of the tool."""
    try:
        kept = hp.cost(pruned, example).macs / hp.cost(dense, example).macs
        apart = difference(dense, pruned, example)
    except UnknownNumbersError as error:
        return {"outcome": "wrong", "why": shown(error)}
    except Exception as error:  # whatever the result's forward raises
        return {"outcome": "crashed", "why": f"the result does not run: {shown(error)}"}
    right = "pruned" if kept < 1 else "unchanged"
    return {"outcome": right if apart <= TOLERANCE else "wrong", "apart": apart, "macs_kept": round(kept, 3)}


if __name__ == "__main__":
    main()
