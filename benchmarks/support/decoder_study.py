"""A study of decoders: every way to prune one without training, cell by cell, and what comes of it."""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.files import write_json
from support.claims import Claims, environment
from support.decoder_rivals import RIVALS, Setting, setting

OURS = "joint, compensated"
METHODS = (OURS, *RIVALS)
SHARES = (0.1, 0.2, 0.3, 0.4)
"""Shares of the parameters of all blocks that go."""
FIRST = (OURS, "flap", "osscar")
TURNS = (((0.2, 0.3), FIRST), ((0.2, 0.3), METHODS), ((0.1, 0.4), FIRST), ((0.1, 0.4), METHODS))
"""The order of cells within a draw: what tells most first."""
DISTILLED, STEPS = 0.2, 200
"""Share that is removed before distillation, and its steps; of the first draw alone."""
PARTS = ("pruned", "distilled", "whole")
Cell = tuple[int, float, str, int]
"""Draw, share, method, and steps of distillation."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A dense decoder with its data, and how it is judged."""

    model: nn.Module
    calibration: Callable[[int], Tensor]
    """From a draw to calibration sequences, `(N, T)`."""
    judge: Callable[[nn.Module], float]
    """From a model to its perplexity on test."""
    judge_whole: Callable[[nn.Module], float]
    """The same on all of test."""
    tune: Callable[[nn.Module, int], nn.Module]
    """From a pruned model and a number of steps to what the dense model makes of it."""
    work: Path | None = None
    """Keeps statistics."""

    @cached_property
    def groups(self) -> hp.Groups:
        """The heads and neurons of the decoder."""
        return hp.find_groups(self.model, {"input_ids": self.calibration(0)[:1]})


@dataclass
class Draw:
    """One draw of calibration sequences, and what is measured on it once."""

    study: Study
    number: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Processor seconds of what is shared by all budgets, by method."""

    @cached_property
    def ids(self) -> Tensor:
        """The sequences."""
        return self.study.calibration(self.number)

    @cached_property
    def given(self) -> Setting:
        """What the rivals are given, without a budget."""
        return setting(self.study.model, self.study.groups, self.ids, seed=self.number)

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        """The sequences, one a batch."""
        return [{"input_ids": ids} for ids in self.ids.split(1)]

    @cached_property
    def statistics(self) -> hp.Statistics:
        """What our budgets have in common: kept in the folder of work."""
        folder = None if self.study.work is None else self.study.work / f"statistics-{self.number}"
        if folder is not None and folder.exists():
            return hp.Statistics.load(folder)
        found = hp.measure(self.study.model, self.given.example, self.batches, seed=self.number)
        return found if folder is None else _kept(found, folder)

    def pruned(self, method: str, share: float) -> nn.Module:
        """Return the pruned model of one cell."""
        given = self.given.losing(share)
        if method in RIVALS:
            return RIVALS[method](given)
        return hp.prune(
            self.study.model, given.example, self.batches, budget=given.budget, stats=self.statistics, seed=self.number
        ).model


def _kept(found: hp.Statistics, folder: Path) -> hp.Statistics:
    folder.parent.mkdir(parents=True, exist_ok=True)
    found.save(folder)
    return found


def cells(draws: int, *, quick: bool = False) -> Iterator[Cell]:
    """Yield all cells; what tells most comes first, and distillation last."""
    seen = set()
    for draw, (shares, methods) in itertools.product(range(draws), TURNS[:2] if quick else TURNS):
        for share, method in itertools.product(shares[: 1 if quick else None], methods):
            if (draw, share, method) not in seen:
                seen.add((draw, share, method))
                yield draw, share, method, 0
    for method in dict.fromkeys((*FIRST, *METHODS)) if draws else ():
        yield 0, DISTILLED, method, 3 if quick else STEPS


def cell_of(row: dict[str, Any]) -> Cell:
    """Return the cell that a row of the record measures."""
    return row["draw"], row["share"], row["method"], row.get("steps", 0)


def measure(study: Study, rows: list[dict[str, Any]], wanted: Iterable[Cell], save: Callable[[], None]) -> None:
    """Measure the wanted cells that are not in `rows`, and append them one by one."""
    done, current = set(map(cell_of, rows)), Draw(study, 0)
    for cell in wanted:
        draw, share, method, steps = cell
        if cell in done:
            continue
        current = current if current.number == draw else Draw(study, draw)
        started = time.process_time()
        model = current.pruned(method, share)
        model = study.tune(model, steps) if steps else model
        seconds = time.process_time() - started
        given = current.given
        params = [hp.cost(each, given.example).params for each in (study.model, model)]
        row = {"draw": draw, "share": share, "method": method, **({"steps": steps} if steps else {})}
        row |= {"perplexity": round(study.judge(model), 4), "gone": round((params[0] - params[1]) / given.total, 4)}
        rows.append(row | {"seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
        save()


def judge_whole(study: Study, whole: dict[str, float], save: Callable[[], None]) -> None:
    """Measure the perplexity of all of test, of the dense model and of ours at the share that is distilled."""
    models = {"dense": lambda: study.model, OURS: lambda: Draw(study, 0).pruned(OURS, DISTILLED)}
    for name, model in models.items():
        if name not in whole:
            whole[name] = round(study.judge_whole(model()), 4)
            print("whole test", name, whole[name], flush=True)
            save()


def mean(rows: list[dict[str, Any]], method: str, share: float, steps: int = 0) -> float | None:
    """Return the mean perplexity of one cell over the draws; None where it was not measured."""
    found = [row["perplexity"] for row in rows if cell_of(row)[1:] == (share, method, steps)]
    return sum(found) / len(found) if found else None


def state(claims: Claims, rows: list[dict[str, Any]], dense: float) -> None:
    """State which method is lowest, and by how much."""
    if not any(row["method"] == OURS for row in rows):
        claims.add("perplexity over that of the best other method", "not measured yet", "<= 1", holds=None)
    for share, steps in (*((share, 0) for share in SHARES), (DISTILLED, STEPS)):
        found = {method: value for method in METHODS if (value := mean(rows, method, share, steps)) is not None}
        best = min((method for method in found if method != OURS), key=lambda m: found[m], default=None)
        if OURS in found and best is not None:
            distilled = f", {steps} steps of distillation" if steps else ""
            name = f"{share:.0%} removed{distilled}: perplexity over that of the best other method"
            claims.at_most(name, found[OURS] / found[best], 1.0, peer=f"{best} {found[best]:.1f}")
    increase = {method: mean(rows, method, 0.2) for method in (OURS, "flap")}
    ours, flap = increase[OURS], increase["flap"]
    if ours is not None and flap is not None:
        name = "20% removed: increase of perplexity over that of flap"
        claims.at_most(name, (ours - dense) / (flap - dense), 0.5, peer=f"{flap:.1f}")


def more_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every study takes."""
    parser.add_argument("--work", type=Path, default=Path("out/decoders"), help="keeps statistics")
    parser.add_argument("--picture", type=Path, help="PNG to draw of what is measured")
    parser.add_argument("--draws", type=int, default=2, help="draws of calibration sequences; 0 measures nothing")
    parser.add_argument("--only", nargs="*", default=METHODS, choices=METHODS, help="methods to measure")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="parts to measure")


def run_study(options: argparse.Namespace, build: Callable[[], Study], shown: str = "") -> None:
    """Measure what `--out` does not hold, state the claims, draw; `shown` are the arguments that tables name."""
    before = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else {}
    rows: list[dict[str, Any]] = list(before.get("rows", ()))
    every = cells(1 if options.quick else options.draws, quick=options.quick)
    wanted = [cell for cell in every if cell[2] in options.only and PARTS[cell[3] > 0] in options.parts]
    dense, whole, claims = before.get("dense"), before.get("whole", {}), Claims()
    judges_whole = bool(options.draws) and "whole" in options.parts
    if wanted or judges_whole:
        study = build()

        def save() -> None:
            if options.out is not None:
                shared = {"environment": environment(), "arguments": shown}
                write_json(options.out, {"claims": [], **shared, "dense": dense, "whole": whole, "rows": rows})

        dense = dense or study.judge(study.model)
        save()
        measure(study, rows, wanted, save)
        if judges_whole:
            judge_whole(study, whole, save)
    if options.quick:
        claims.at_least("cells of an untrained network that were measured", len(rows), len(wanted))
    elif dense is not None:
        state(claims, rows, dense)
    planned = len(list(cells(2)))
    text = f"Partial: {len(rows)} of {planned} perplexities are measured, {planned - len(rows)} are not yet."
    note = {"note": text} if len(rows) < planned else {}
    claims.write(options.out, dense=dense, whole=whole, rows=rows, arguments=shown, **note)
    if options.picture is not None and dense is not None:
        draw(rows, dense, options.picture)


def draw(rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Draw mean perplexity, on a logarithmic axis, against the share that is removed."""
    from matplotlib.figure import Figure  # which only drawing needs

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes, top = figure.subplots(), 7 * dense  # beyond which a model says nothing any more
    for number, method in enumerate(METHODS):
        points = [(share, value) for share in SHARES if (value := mean(rows, method, share)) is not None]
        if points:
            bold = {"linewidth": 3, "color": "#cc3d8f", "zorder": 9} if method == OURS else {"color": f"C{number % 10}"}
            is_within = any(value < top for _, value in points)
            label = method if is_within else f"{method} (above)"
            axes.plot(*zip(*points, strict=True), label=label, marker="os^D"[number % 4], markersize=4, **bold)
    axes.axhline(dense, color="#8a929c", linestyle="--", linewidth=0.9)
    axes.set(xlabel="parameters of the blocks removed", ylabel="perplexity", yscale="log", ylim=(0.92 * dense, top))
    marks = [round(dense * factor) for factor in (1, 1.25, 1.5, 2, 3, 4, 6)]
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.minorticks_off()
    axes.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
