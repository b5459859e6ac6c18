"""Joint selection takes about a minute for 20 000 units, in a fraction of the memory of their matrix of interactions.

Synthetic: 40 linear layers of 500 units each, `r` = 4 096 rows of features (512 in a quick run) with a falling
spectrum, a budget that removes half of all units, one thread; seconds are processor time, memory is how far the
resident set of a fresh process grows at most. n = 256 lossless CIFAR-10 images (64) for the comparison of factor and
matrix on the pretrained ResNet-56 (ResNet-20), half of the MACs; the loss increases compared are those that the matrix
estimates.
"""

import itertools
import time
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.curvature.accumulate import FactorSum
from hessprune.foundation.symmetric import Factor
from hessprune.planning.joint import select_jointly
from support.claims import Claims, arguments
from support.memory import Peak, in_a_process
from support.networks import images, pretrained

LAYERS, WIDTH = 40, 500
UNITS = LAYERS * WIDTH
MATRIX = 8 * UNITS**2
SHORT = 256


def main() -> None:
    options, claims = arguments(__doc__), Claims()
    rows = []
    for method in ("joint",) if options.quick else ("joint", "sosp-i"):
        rows.append({"run": method, **in_a_process(selecting, 512 if options.quick else 4096, method == "sosp-i")})
        print(rows[-1], flush=True)
        name = f"{method}, {UNITS} units"
        claims.at_least(f"{name}: units removed", rows[-1]["removed"], 0.45 * UNITS)
        claims.at_most(f"{name}: processor seconds of the selection", rows[-1]["seconds"], 90)
        claims.at_most(f"{name}: peak memory / the matrix alone", rows[-1]["bytes"] / MATRIX, 0.5, peer=MATRIX)
    if not options.quick:
        rows.append({"run": "streaming", **in_a_process(streaming, 5120)})
        print(rows[-1], flush=True)
        claims.at_most("5 120 rows become a factor: peak memory / the matrix alone", rows[-1]["bytes"] / MATRIX, 0.5)
        claims.at_most("5 120 rows become a factor: processor seconds", rows[-1]["seconds"], 180)
        claims.at_most("5 120 rows become a factor: share of the trace left out", rows[-1]["dropped"], 0.1)
    rows += real(claims, options)
    claims.write(options.out, rows=rows)


def selecting(rank: int, absolute: bool) -> dict[str, Any]:
    """Select half of all units; return seconds and bytes."""
    torch.set_num_threads(1)
    net = nn.Sequential(*layers(), nn.Linear(WIDTH, 10))
    x = torch.zeros(1, 16)
    groups = hp.find_groups(net, x)
    costs = CostModel(net, x, groups)
    peak = Peak()
    interactions = Factor(features(rank), absolute)
    alone = (interactions.diagonal() / 2).split(WIDTH)
    saliency = dict(zip([group.name for group in groups], alone, strict=True))
    started = time.process_time()
    zones = select_jointly(
        groups, saliency, interactions, costs, budget=hp.Budget(macs=0.25), ranking=hp.Ranking(min_kept_fraction=0.1)
    )
    seconds, removed = time.process_time() - started, sum(map(len, zones.removed.values()))
    return {"seconds": seconds, "bytes": peak.stop(), "removed": removed, "rank": rank}


def streaming(rows: int) -> dict[str, Any]:
    """Add up rows that do not all fit; return what that takes."""
    torch.set_num_threads(1)
    FactorSum(3, 2).add(torch.randn(9, 3))  # what any use takes is not counted
    peak = Peak()
    total, seconds, trace = FactorSum(UNITS, 4096), 0.0, 0.0
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(1024, UNITS, generator=generator) / torch.arange(1, 1025)[:, None]
    for _ in range(rows // 64):
        phi = torch.randn(64, 1024, generator=generator) @ mixing
        phi += 0.01 * torch.randn(64, UNITS, generator=generator)
        trace += float(phi.double().square().sum())
        started = time.process_time()
        total.add(phi)
        seconds += time.process_time() - started
    total.result(float(rows))
    return {"seconds": seconds, "bytes": peak.stop(), "dropped": total.dropped / trace}


def real(claims: Claims, options: Namespace) -> list[dict[str, Any]]:
    """Compare factors with the matrix on a network that both can hold."""
    depth, number = (20, 64) if options.quick else (56, 256)
    name, model, data = f"resnet{depth}", pretrained(depth, options.data_root), images(options.data_root, number)
    whole, factor, short = (planned(model, data, rows) for rows in (None, 4096, SHORT))
    q = whole["interactions"]
    rows = []
    for found in (whole, factor, short):
        gone = torch.tensor(sorted(found["removed"]))
        increase = float(q[gone][:, gone].sum() / 2)
        facts = {key: found[key] for key in ("rows", "seconds", "dropped")}
        rows.append({"run": name, **facts, "units": len(q), "removed": len(gone), "increase": increase})
        print(rows[-1], flush=True)
    claims.at_most(f"{name}: processor seconds of the plan, {len(q)} units", whole["seconds"], 5)
    shared = len(whole["removed"] & factor["removed"]) / len(whole["removed"])
    claims.at_least(f"{name}: share of units that factor and matrix both remove", shared, 0.99)
    claims.at_most(f"{name}: share of the trace that {SHORT} rows leave out", short["dropped"], 0.01)
    ratio = rows[2]["increase"] / rows[0]["increase"]
    claims.at_most(f"{name}: estimated loss increase, {SHORT} rows / matrix", ratio, 1.1)
    return rows


def planned(model: nn.Module, data: tuple[Tensor, Tensor], rank: int | None) -> dict[str, Any]:
    """Return what a plan removes with the matrix, or with a factor of at most that many rows."""
    groups = hp.find_groups(model, data[0][:1])
    found = hp.saliency(model, groups, [data], hp.Joint(refit=False, interaction_rows=rank))
    started = time.process_time()
    plan = hp.make_plan(model, groups, found, hp.Budget(macs=0.5), example_inputs=data[0][:1])
    seconds = time.process_time() - started
    starts = itertools.accumulate((group.num_units for group in groups), initial=0)
    return {
        "rows": found.provenance.get("interaction_rows"),
        "seconds": seconds,
        "dropped": found.provenance.get("interactions_dropped", 0.0),
        "interactions": found.interactions,
        "removed": {first + u for first, g in zip(starts, groups, strict=False) for u in plan.removed[g.name]},
    }


def layers() -> list[nn.Module]:
    """Return the layers whose units may go."""
    first = [nn.Linear(16, WIDTH), nn.ReLU()]
    return first + [layer for _ in range(LAYERS - 1) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]


def features(rank: int) -> Tensor:
    """Return features with a falling spectrum, of units that differ: `(rank, UNITS)`."""
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(UNITS, rank, generator=generator)
    phi *= (1 + torch.arange(rank) / 50).rsqrt()
    phi *= (0.7 * torch.randn(UNITS, 1, generator=generator)).exp()
    return phi.T


if __name__ == "__main__":
    main()
