"""Claim: a planted bottleneck is named first, by the share that a pruning removes of it, and by the gain of a unit.

Three kinds of networks (plain, residual, dense) learn the digits in seconds; of each, one layer drawn at random has a
quarter of the width of its neighbours. `hp.find_bottlenecks` sees 512 calibration images in three draws, and levels of
30, 50 and 70 % of the parameters. Beside `joint` stand SOSP-H and SOSP-I, as published without division by cost, and
the order at random. A hit is a planted layer in the first place. The gain is that of a new unit, to first order.
"""

import random
import time
from argparse import ArgumentParser
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.lab.data import Dataset, load_dataset
from support.claims import Claims, arguments

METHODS = ("joint", "sosp-h", "sosp-i", "random")
SEEDS, EPOCHS, BATCH, LR = 5, 8, 64, 0.1
LEVELS = (0.3, 0.5, 0.7)


def step(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


class Plain(nn.Module):
    """Convolutions in a row, as in a VGG."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        sizes = [1, *widths]
        strides = [2 if place == len(widths) // 2 else 1 for place in range(len(widths))]
        self.body = nn.Sequential(*map(step, sizes, widths, strides))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    """Blocks of two convolutions around a stream of 16 channels; the widths are those between the two."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem, self.head = step(1, 16), nn.Linear(16, 10)
        back = (nn.Sequential(nn.Conv2d(width, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)) for width in widths)
        self.body = nn.ModuleList(
            nn.Sequential(step(16, width), last) for width, last in zip(widths, back, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it; the widths are those that each one adds."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem, self.body, inside = step(1, 12), nn.ModuleList(), 12
        for width in widths:
            self.body.append(step(inside, width))
            inside += width
        self.head = nn.Linear(inside, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.body:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))


KINDS: dict[str, tuple[Any, list[int], slice]] = {
    "plain": (Plain, [16] * 6, slice(1, 5)),
    "residual": (Residual, [16] * 5, slice(0, 5)),
    "dense": (Dense, [12] * 5, slice(0, 5)),
}
"""Network, widths before the planting, and the places where one may be planted."""


def main() -> None:
    options, claims = arguments(__doc__, more_arguments), Claims()
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for seed in range(1 if options.quick else SEEDS):
            rows += looked_at(kind, seed, ("joint", "random") if options.quick else METHODS)
    judge(claims, rows)
    claims.write(options.out, rows=rows)


def more_arguments(parser: ArgumentParser) -> None:
    parser.set_defaults(threads=1)


def looked_at(kind: str, seed: int, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    """Train one network with a narrowed layer; return one row for each method."""
    data = load_dataset("digits", seed=seed, validation_size=200, calibration_size=512)
    build, widths, places = KINDS[kind]
    place = random.Random(seed).choice(range(len(widths))[places])
    torch.manual_seed(seed)
    net = build([width // 4 if number == place else width for number, width in enumerate(widths)])
    train(net, data, seed)
    accuracy = hp.evaluate(net, data.batches("test", 450, shuffle=False)).accuracy
    batches = list(data.batches("calibration", 128, shuffle=False))
    rows = []
    for method in methods:
        started = time.process_time()
        found = hp.find_bottlenecks(
            net,
            batches[0][0][:1],
            batches,
            levels=LEVELS,
            method=method,
            loss_fn=F.cross_entropy,
            ranking=hp.Ranking(per_cost=None if method == "joint" else False, min_kept_fraction=0.0),
            seed=seed,
        )
        planted = next(item for item in found if item.group.startswith(f"body.{place}."))
        row = {"kind": kind, "seed": seed, "place": place, "accuracy": accuracy, "method": method}
        row |= {"rank": found.index(planted), "relative": planted.relative, "of": len(found)}
        for name in ("gain", "gain_per_mac"):
            order = sorted(found, key=lambda item: -(getattr(item, name) or 0.0))
            row[f"rank_by_{name}"] = order.index(planted)
        rows.append(row | {"seconds": round(time.process_time() - started, 1)})
        print(rows[-1], flush=True)
    return rows


def train(net: nn.Module, data: Dataset, seed: int) -> None:
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for epoch in range(EPOCHS):
        for x, y in data.batches("train", BATCH, seed=seed * EPOCHS + epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def judge(claims: Claims, rows: list[dict[str, Any]]) -> None:
    """Claim that the planted layer comes first, for each kind of network."""
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind and row["method"] == "joint"]
        shares = {m: hits([r for r in rows if r["kind"] == kind and r["method"] == m], "rank") for m in METHODS}
        others = ", ".join(f"{m} {shares[m]}" for m in METHODS if m != "joint" and shares[m] is not None)
        name = f"{kind}: planted bottlenecks named first of {len(own)}"
        claims.at_least(f"{name}, by the removed share", shares["joint"] or 0, len(own), peer=others)
        by_gain, by_mac = hits(own, "rank_by_gain"), hits(own, "rank_by_gain_per_mac")
        claims.at_least(f"{name}, by the gain of a unit", by_gain or 0, len(own), peer=f"per multiply-add {by_mac}")


def hits(rows: list[dict[str, Any]], rank: str) -> int | None:
    return sum(row[rank] == 0 for row in rows) if rows else None


if __name__ == "__main__":
    main()
