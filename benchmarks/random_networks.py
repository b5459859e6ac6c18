"""Claim: of random networks, none is pruned wrongly and none ends in a crash; at least 85 % are pruned.

Each seed draws a network of one to three blocks (residual, concatenated, split, shuffled, gated, grouped, depthwise,
transposed, attention in several layouts, shared modules, bare parameters, widths in the source code) with one or two
inputs and outputs; random units of random groups leave it. `pruned` means: the smaller model equals the dense one with
zeros in the weights of the units that left, by a mask of this check's own, and has the parameters and the MACs that the
plan predicted, by torch's counter. `refused` means one line of the library that names the cause. One thread.
An earlier JSON file under `--out` with the same versions is continued.
"""

import argparse
import contextlib
import gc
import io
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.networks.check import Outcome, check
from tests.networks.network import Network

from support.claims import Claims, environment

QUICK, SAVED_EVERY = 40, 50


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    gc.set_threshold(50_000, 20, 100)  # captured graphs are many small objects; looking through them takes a third
    warnings.simplefilter("ignore")
    found = earlier(options.out)
    started = time.perf_counter() - found["seconds"]
    for seed in track(range(found["draws"], options.draws), description="networks", disable=not sys.stderr.isatty()):
        note(found, seed, drawn(seed))
        found["seconds"] = round(time.perf_counter() - started, 1)
        if found["draws"] % SAVED_EVERY == 0:
            with contextlib.redirect_stdout(io.StringIO()):
                save(options.out, found)
    claims = save(options.out, found)
    sys.exit(any(claim["holds"] is False for claim in claims.claims))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--draws", type=int, default=5000, help="number of networks")
    parser.add_argument("--out", type=Path, help="JSON file to write, and to continue")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} networks")
    parser.add_argument("--data-root", type=Path, help="not needed")
    options = parser.parse_args()
    options.draws = QUICK if options.quick else options.draws
    return options


def earlier(out: Path | None) -> dict[str, Any]:
    """Return what an earlier run with the same versions found, or a start."""
    content = json.loads(out.read_text("utf-8")) if out is not None and out.exists() else {}
    if content.get("environment", {}).get("versions") == environment()["versions"]:
        return content["found"]
    counts = dict.fromkeys(("pruned", "refused", "wrong", "crashed"), 0)
    return {"draws": 0, "seconds": 0.0, **counts, "refused_because": {}, "failures": []}


def drawn(seed: int) -> Outcome:
    """Check the network of one seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Network(rng)
    return check(model, model.inputs(), rng)[0]


def note(found: dict[str, Any], seed: int, outcome: Outcome) -> None:
    """Add one outcome."""
    found["draws"] += 1
    found[outcome.result] += 1
    if outcome.result == "refused":
        for cause in {*outcome.detail.split("; ")}:
            found["refused_because"][cause] = found["refused_because"].get(cause, 0) + 1
    elif outcome.result != "pruned":
        found["failures"].append({"seed": seed, "result": outcome.result, "detail": outcome.detail[:300]})


def save(out: Path | None, found: dict[str, Any]) -> Claims:
    """Judge what was found so far, and write it."""
    claims = Claims()
    claims.at_most("networks pruned wrongly", found["wrong"], 0)
    claims.at_most("networks that end in a crash", found["crashed"], 0)
    claims.at_least("share of networks that are pruned", found["pruned"] / max(found["draws"], 1), 0.85)
    claims.write(out, found=found)
    return claims


if __name__ == "__main__":
    main()
