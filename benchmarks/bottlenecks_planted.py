"""Claim: a planted bottleneck is named first, by the share that a pruning removes of it, whoever scores the units.

Three kinds of networks of four blocks (plain, residual, dense) learn the digits in seconds; one block drawn at random
has a quarter of the width of the others. `hp.find_bottlenecks` sees 512 calibration images in three draws, and levels
of 30, 50 and 70 % of the parameters, by `joint`, by SOSP-H and SOSP-I as published, without division by cost, and at
random. A hit is a layer of the planted block in the first place of all layers. Beside it stands how often the expected
gain of a new unit, to first order, is highest there: it is no detector, for it is larger in later layers, and says
little where training has converged. With a single narrowed layer, which the others of its block can stand in for,
`joint` hit 5 times in a row of convolutions, 5 between the ends of shortcuts and 3 in a dense network, SOSP-I 5, 1
and 4 times.
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
NARROWED = 4
DENSE_LAYERS = 3


def normed(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside))


def step(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return normed(inside, outside, kernel, stride).append(nn.ReLU())


class Plain(nn.Sequential):
    """Two convolutions in a row, as in a VGG."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__(step(inside, width, stride=stride), step(width, width))
        self.outside = width


class Residual(nn.Module):
    """Two convolutions beside a projection, as where a ResNet changes its width."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.outside = width
        self.body = nn.Sequential(step(inside, width, stride=stride), normed(width, width))
        self.shortcut = normed(inside, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Dense(nn.Module):
    """Three convolutions that each read all before them, and the transition behind, as in a DenseNet."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.outside, self.stride = 2 * width, stride
        self.layers = nn.ModuleList(step(inside + width * number, width) for number in range(DENSE_LAYERS))
        self.transition = step(inside + width * DENSE_LAYERS, 2 * width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(x, self.stride)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.transition(x)


class Net(nn.Module):
    """Blocks of some widths; the second and third one halve the images."""

    def __init__(self, block: Any, widths: list[int], stem: int = 16) -> None:
        super().__init__()
        self.stem, self.blocks = step(1, stem), nn.Sequential()
        for number, width in enumerate(widths):
            self.blocks.append(block(stem, width, 2 if number in (1, 2) else 1))
            stem = self.blocks[-1].outside
        self.head = nn.Linear(stem, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


KINDS: dict[str, tuple[Any, int]] = {"plain": (Plain, 16), "residual": (Residual, 16), "dense": (Dense, 8)}
"""Block, and its width where none is planted."""
NUM_BLOCKS = 4


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
    """Train one network with a narrowed block; return one row for each method."""
    data = load_dataset("digits", seed=seed, validation_size=200, calibration_size=512)
    block, width = KINDS[kind]
    place = random.Random(f"{kind} {seed}").randrange(NUM_BLOCKS)
    torch.manual_seed(seed)
    net = Net(block, [width // NARROWED if number == place else width for number in range(NUM_BLOCKS)])
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
            seed=seed,
        )
        row = {"kind": kind, "seed": seed, "place": place, "accuracy": accuracy, "method": method}
        row |= {"rank": rank(found, place), "of": len(found)}
        row["rank_by_gain"] = rank(sorted(found, key=lambda item: -(item.gain or 0.0)), place)
        rows.append(row | {"seconds": round(time.process_time() - started, 1)})
        print(rows[-1], flush=True)
    return rows


def rank(found: Any, place: int) -> int:
    """Return the first place of a layer of the planted block."""
    return next(number for number, item in enumerate(found) if item.group.startswith(f"blocks.{place}."))


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
    """Claim that a layer of the planted block comes first, for each kind of network and each criterion."""
    for kind in KINDS:
        own = {method: [r for r in rows if (r["kind"], r["method"]) == (kind, method)] for method in METHODS}
        others = f"random {hits(own['random'], 'rank')}, gain of a unit {hits(own['random'], 'rank_by_gain')}"
        for method in METHODS[:-1]:
            if found := own[method]:
                name = f"{kind}: planted blocks named first of {len(found)}, by the share that {method} removes"
                claims.at_least(name, hits(found, "rank"), len(found), peer=others)


def hits(rows: list[dict[str, Any]], rank: str) -> int:
    return sum(row[rank] == 0 for row in rows)


if __name__ == "__main__":
    main()
