"""A study of training after pruning: accuracy by method and length, and the epochs that a criterion saves."""

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.files import write_json
from hessprune.lab.context import Run, open_run
from hessprune.lab.models import load_weights
from hessprune.lab.recipe import load_recipe
from hessprune.lab.store import load_state, save_state
from support.claims import Claims

Row = dict[str, Any]
JOINT = "joint, compensated"
METHODS: dict[str, tuple[hp.Method, bool]] = {
    JOINT: (hp.Joint(refit=True), True),
    "magnitude": (hp.Magnitude(), False),
    "hap": (hp.HAP(), False),
    "sosp-h": (hp.SOSPH(), False),
    "sosp-i": (hp.SOSPI(), False),
    "random": (hp.Random(), False),
}
"""Criteria, and whether survivors compensate."""
RATES = (0.01, 0.05)
"""Peak learning rates to choose from."""
RECIPES = Path(__file__).parents[2] / "recipes"
QUICK_SETTINGS = ("model.pretrain.epochs=2", "data.calibration_size=64")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One dense network with its data."""

    name: str
    run: Run
    work: Path
    adapted: hp.FinetuneConfig

    @cached_property
    def dense(self) -> nn.Module:
        """The network, trained on these images; then read from a folder."""
        folder = self.work / self.name
        folder.mkdir(parents=True, exist_ok=True)
        model = self.run.fresh_model()
        if not (folder / "model.safetensors").exists():
            if self.run.settings.model.weights is not None:
                load_weights(model, self.run.data_root / self.run.settings.model.weights)
            save_state(self.trained(model, self.adapted), folder)
        return load_state(model, folder).eval()

    def trained(self, model: nn.Module, config: hp.FinetuneConfig, share: float = 1.0) -> nn.Module:
        """Train on a share of the images, drawn by the seed of `config`."""
        data = self.run.data
        if share < 1:
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
            data = replace(data, train=data.train.subset(order[: round(share * len(order))]))
        train = data.batches("train", self.run.settings.data.batch_size, augment=True, seed=config.seed)
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # convolutions of processors are faster
        return hp.finetune(model, train, self.run.batches("validation"), config=config).model

    def pruned(self, method: str, share: float, draw: int) -> nn.Module:
        """Return the network with a share of its MACs, without training."""
        criterion, compensated = METHODS[method]
        batches = self.run.data.with_calibration(draw).batches("calibration", 256)
        budget = hp.Budget(macs=share)
        result = hp.prune(
            self.dense, self.run.example, batches, budget=budget, method=criterion, compensate=compensated, seed=draw
        )
        return result.model

    def accuracy(self, model: nn.Module, split: Any) -> float:
        """Return the accuracy on a split, in percent."""
        found = hp.evaluate(model, self.run.batches(split)).accuracy
        assert found is not None
        return 100 * found


def resnet(depth: int, options: argparse.Namespace) -> Subject:
    """Return a pretrained ResNet with the JPEG images."""
    weights = next((options.data_root / "weights").glob(f"resnet{depth}-*")).name
    changes = [f"model.name=resnet{depth}", f"model.weights=weights/{weights}", "data.validation_size=2000"]
    run = open_run(load_recipe(RECIPES / "cifar10-resnet56.yaml", changes), options.work, options.data_root)
    return Subject(
        name=f"resnet{depth}",
        run=run,
        work=options.work,
        adapted=hp.FinetuneConfig(epochs=4, lr=0.05, precision="bf16"),
    )


def digits(options: argparse.Namespace) -> Subject:
    """Return a small network on digits, to see every cell run."""
    run = open_run(load_recipe(RECIPES / "digits.yaml", QUICK_SETTINGS), options.work, options.data_root)
    return Subject(name="digits", run=run, work=options.work, adapted=hp.FinetuneConfig(epochs=2, lr=0.1))


def rates(rows: Sequence[Row], cell: Row) -> tuple[float, ...]:
    """Return the learning rates to train a cell with: all in draw 0, the best of them in others."""
    if cell["epochs"] == 0:
        return (0.0,)
    return RATES if cell["draw"] == 0 else (best_rate(rows, cell),)


def best_rate(rows: Sequence[Row], cell: Row) -> float:
    """Return the rate that does best on the validation images of draw 0."""
    tried = [row for row in rows if _same(row, cell, *CELL) and row["draw"] == 0]
    return max(tried, key=lambda row: row["validation"])["lr"]


CELL = ("network", "share", "method", "epochs")


def _same(row: Row, other: Row, *keys: str) -> bool:
    return all(row[key] == other[key] for key in keys)


def cells(options: argparse.Namespace, name: str) -> Iterator[Row]:
    """Yield all cells of a network: what tells most for its time comes first."""
    for epochs, share, draw, method in itertools.product(
        sorted(options.epochs), options.shares, range(options.draws), METHODS
    ):
        yield {"network": name, "share": share, "method": method, "epochs": epochs, "draw": draw}


def measure(subject: Subject, rows: list[Row], wanted: Iterator[Row], save: Callable[[], None]) -> None:
    """Measure the wanted cells that are not in `rows`, and append them one by one."""
    dense = hp.cost(subject.dense, subject.run.example)
    for cell in wanted:
        for lr in rates(rows, cell):
            if any(_same(row, cell | {"lr": lr}, *CELL, "draw", "lr") for row in rows):
                continue
            started = time.process_time()
            model = subject.pruned(cell["method"], cell["share"], cell["draw"])
            if cell["epochs"]:
                whole = max(1, round(cell["epochs"]))
                config = hp.FinetuneConfig(epochs=whole, lr=lr, seed=cell["draw"], precision="bf16")
                model = subject.trained(model, config, share=min(cell["epochs"], 1.0))
            kept = hp.cost(model, subject.run.example)
            rows.append(
                cell
                | {
                    "lr": lr,
                    "validation": subject.accuracy(model, "validation"),
                    "test": subject.accuracy(model, "test"),
                    "macs": round(kept.macs / dense.macs, 4),
                    "params": round(kept.params / dense.params, 4),
                    "seconds": round(time.process_time() - started, 1),
                }
            )
            print(rows[-1], flush=True)
            save()


def chosen(rows: Sequence[Row], **cell: Any) -> list[Row]:
    """Return the rows of one cell at its chosen learning rate, a row for each draw."""
    found = [row for row in rows if _same(row, cell, *CELL)]
    if not any(row["draw"] == 0 for row in found):
        return []
    return [row for row in found if row["lr"] == best_rate(rows, cell)]


def curve(rows: Sequence[Row], network: str, share: float, method: str) -> dict[float, float]:
    """Return the mean test accuracy by length of training."""
    lengths = sorted({row["epochs"] for row in rows})
    found = {e: chosen(rows, network=network, share=share, method=method, epochs=e) for e in lengths}
    return {epochs: mean(row["test"] for row in cell) for epochs, cell in found.items() if cell}


def epochs_to_reach(points: dict[float, float], accuracy: float) -> float | None:
    """Return after how many epochs a curve first has an accuracy, along straight lines; None if it never has.

    Example:
        >>> epochs_to_reach({0: 10.0, 1: 80.0, 4: 86.0}, 83.0)
        2.5
    """
    steps = list(points.items())
    if steps and steps[0][1] >= accuracy:
        return steps[0][0]
    for (before, low), (after, high) in itertools.pairwise(steps):
        if high >= accuracy:
            return before + (after - before) * (accuracy - low) / (high - low)
    return None


def state(claims: Claims, rows: Sequence[Row]) -> None:
    """State for each rival how long it trains to reach what `joint` has after 0, and after 1 epoch."""
    for network, share in sorted({(row["network"], row["share"]) for row in rows}, key=lambda key: (key[0], -key[1])):
        ours = curve(rows, network, share, JOINT)
        for length, method in itertools.product((0, 1), METHODS):
            theirs = curve(rows, network, share, method)
            if method == JOINT or length not in ours or len(theirs) < 2:
                continue
            found, longest = epochs_to_reach(theirs, ours[length]), max(theirs)
            goal = f"epochs of {method} to the {ours[length]:.1f} % of joint after {length}"
            value = f"more than {longest:g}" if found is None else round(found, 2)
            holds, peer = found is None or found > length, round(theirs[longest], 1)
            claims.add(f"{network}, {share:.0%} of the MACs: {goal}", value, f"> {length}", holds=holds, peer=peer)


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation, or 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against epochs of training: one panel for each network and share that has been trained."""
    from matplotlib.figure import Figure  # which only drawing needs

    trained = {(row["network"], row["share"]) for row in rows if row["epochs"]}
    panels = sorted(trained, key=lambda key: (key[0], -key[1]))
    figure = Figure(figsize=(1.5 + 4 * len(panels), 3.8), layout="constrained")
    for axes, (network, share) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, method in enumerate(METHODS):
            points = curve(rows, network, share, method)
            errors = [
                spread([row["test"] for row in chosen(rows, network=network, share=share, method=method, epochs=e)])
                for e in points
            ]
            bold = {"linewidth": 3, "color": "#cc3d8f"} if method == JOINT else {"color": f"C{number % 10}"}
            axes.errorbar(
                list(points), list(points.values()), errors, label=method, marker="o", markersize=4, capsize=2, **bold
            )
        axes.set(title=f"{network}, {share:.0%} of the MACs", xlabel="epochs of training")
        axes.set_xscale("symlog", linthresh=0.25)
        axes.set_xticks(lengths := sorted({row["epochs"] for row in rows}), [f"{length:g}" for length in lengths])
    figure.axes[0].set_ylabel("accuracy, %")
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def run_study(options: argparse.Namespace) -> None:
    """Measure what `--out` does not hold, state the claims, draw."""
    before = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else {}
    rows, dense, claims = list(before.get("rows", ())), dict(before.get("dense", {})), Claims()

    def save() -> None:
        if options.out is not None:
            write_json(options.out, {"claims": [], "dense": dense, "rows": rows})

    if options.quick:
        options.draws, options.shares, options.epochs = 1, [0.5], [0, 0.25]
    subjects = [digits(options)] if options.quick else [resnet(depth, options) for depth in options.depths]
    for subject in subjects if options.draws else ():
        dense.setdefault(subject.name, subject.accuracy(subject.dense, "test"))
        measure(subject, rows, cells(options, subject.name), save)
    if options.quick:
        claims.at_least("cells of a small network that were measured", len(rows), len(METHODS) * (1 + len(RATES)))
    else:
        state(claims, rows)
    claims.write(options.out, dense=dense, rows=rows)
    if options.picture is not None:
        draw(rows, options.picture)
