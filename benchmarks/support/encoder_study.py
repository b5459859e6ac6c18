"""A study of encoders: every way to prune one without training, cell by cell, and what comes of it."""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.files import write_json
from support.claims import Claims
from support.encoder_rivals import RIVALS, setting

KINDS: dict[str, tuple[tuple[str, ...], str, tuple[float, ...]]] = {
    "both": (("heads", "neurons"), "macs", (0.3, 0.2, 0.5, 0.4)),
    "heads": (("heads",), "units", (0.4, 0.25, 0.5, 0.7)),
    "neurons": (("neurons",), "units", (0.3, 0.2, 0.5, 0.4)),
}
"""Units that may go, what is budgeted, and the kept shares."""
RECOVERED = "both, one epoch"
OURS: dict[str, tuple[hp.Method, bool, bool | None]] = {
    "joint, compensated": (hp.Joint(refit=True), True, None),
    "joint": (hp.Joint(refit=False), False, None),
    "hap": (hp.HAP(), False, None),
    "sosp-i": (hp.SOSPI(), False, None),
    "magnitude": (hp.Magnitude(), False, None),
    "magnitude, whatever it costs": (hp.Magnitude(), False, False),
    "random": (hp.Random(), False, None),
    "magnitude, compensated": (hp.Magnitude(), True, None),
    "hap, compensated": (hp.HAP(), True, None),
    "nvit": (hp.NViT(), False, None),
}
"""Criteria of hessprune: method, whether survivors compensate, and whether saliencies are taken per cost."""
WITHOUT_DATA = ("magnitude", "magnitude, whatever it costs")
"""What is the same in all draws, and measured in the first one."""
ONLY = {"michel": "heads", "vbp": "neurons", "dvbp+ob2c": "neurons", "corp": "neurons"}
"""What a published formula is for, where that is not both kinds of units."""
FIRST = ("joint, compensated", "michel", "kwon")
TURNS = (FIRST, ("k-prune",), (*(name for name in OURS if name not in FIRST), "vbp", "dvbp+ob2c", "corp", "osscar"))
"""The order of cells: what tells most first, in all draws, and what takes long late."""
METHODS = tuple(dict.fromkeys(itertools.chain(*TURNS)))


@dataclass(frozen=True, kw_only=True)
class Study:
    """A dense encoder with its data, and how it is judged."""

    model: nn.Module
    example: Any
    calibration: Callable[[int], Any]
    """From a draw to batches of calibration samples."""
    judge: Callable[[nn.Module], tuple[float, float]]
    """From a model to accuracy and loss on test."""
    tune: Callable[[nn.Module], nn.Module]
    """From a pruned model to one after an epoch of training."""
    behind: Callable[[str], str]
    """From the name of a reader to that of the module that takes the residual sum behind it."""
    ignore: tuple[str, ...] = ()
    reads_first: bool = True
    """Whether the last layer counts at the first position alone."""

    @cached_property
    def groups(self) -> hp.Groups:
        """The heads and neurons of the encoder."""
        return hp.find_groups(self.model, self.example, ignore=self.ignore)

    def of_kind(self, kinds: tuple[str, ...]) -> list[hp.Group]:
        """Return the groups of some kinds."""
        return [group for group in self.groups if group.kind in kinds]


@dataclass
class Draw:
    """One draw of calibration samples, and the saliencies measured on it."""

    study: Study
    number: int
    found: dict[tuple[str, str], hp.Saliency] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the shares of a kind have in common for the rivals."""

    @cached_property
    def batches(self) -> Any:
        """The samples."""
        return self.study.calibration(self.number)

    def pruned(self, method: str, kind: str, share: float) -> nn.Module:
        """Return the pruned model of one cell."""
        kinds, quantity, _ = KINDS[kind]
        model, example, groups = self.study.model, self.study.example, self.study.of_kind(kinds)
        if method in RIVALS:
            given = setting(
                model,
                groups,
                [_pair(batch) for batch in self.batches],
                share=share,
                quantity=quantity,
                example=example,
                totals=self.study.behind,
                measured=self.measured.setdefault(kind, {}),
            )
            return RIVALS[method](replace(given, reads_first=self.study.reads_first))
        criterion, compensated, per_cost = OURS[method]
        budget = hp.Budget(macs=share) if quantity == "macs" else hp.Budget(units=share)
        values, ranking = self._saliency(criterion, kind), hp.Ranking(per_cost=per_cost)
        plan = hp.make_plan(model, groups, values, budget, example_inputs=example, ranking=ranking)
        smaller = hp.apply_plan(model, plan, example_inputs=example)
        return hp.compensate(model, smaller, plan, self.batches) if compensated else smaller

    def _saliency(self, method: hp.Method, kind: str) -> hp.Saliency:
        """Return the saliencies of the units of one kind, measured once."""
        key = str(method), kind
        if key not in self.found:
            groups = self.study.of_kind(KINDS[kind][0])
            # The published criteria are of the loss on labels; joint asks for the dense outputs alone.
            loss_fn = None if isinstance(method, hp.Joint) else F.cross_entropy
            self.found[key] = hp.saliency(
                self.study.model, groups, self.batches, method=method, loss_fn=loss_fn, seed=self.number
            )
        return self.found[key]


def _pair(batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Return inputs by keyword, and labels."""
    if isinstance(batch, dict):
        return {name: values for name, values in batch.items() if name != "labels"}, batch["labels"]
    inputs, labels = batch
    return {"x": inputs}, labels


def cells(draws: Iterable[int], shares: int) -> Iterator[tuple[int, str, float, str]]:
    """Yield draw, kind, share and method of all cells, of the first `shares` shares; what tells most comes first."""
    for methods, draw in itertools.product(TURNS, draws):
        for kind, method in itertools.product(KINDS, methods):
            if draw and method in WITHOUT_DATA:
                continue
            if ONLY.get(method, kind) == kind and (kind == "both" or method != "magnitude, whatever it costs"):
                yield from ((draw, kind, share, method) for share in KINDS[kind][2][:shares])


def measure(
    study: Study, rows: list[dict[str, Any]], wanted: Iterable[tuple[int, str, float, str]], save: Callable[[], None]
) -> None:
    """Measure the wanted cells that are not in `rows`, and append them one by one."""
    done = {(row["draw"], row["kind"], row["share"], row["method"]) for row in rows}
    dense, current = hp.cost(study.model, study.example), Draw(study, 0)
    for draw, kind, share, method in wanted:
        if (draw, kind, share, method) in done:
            continue
        current = current if current.number == draw else Draw(study, draw)
        started = time.process_time()
        model = current.pruned(method, "both" if kind == RECOVERED else kind, share)
        model = study.tune(model) if kind == RECOVERED else model
        seconds = time.process_time() - started
        accuracy, loss = study.judge(model)
        kept = hp.cost(model, study.example).macs / dense.macs
        row = {"draw": draw, "kind": kind, "share": share, "method": method, "accuracy": accuracy, "loss": loss}
        rows.append(row | {"macs": round(kept, 4), "seconds": round(seconds, 1)})
        print(rows[-1], flush=True)
        save()


def best_three(rows: list[dict[str, Any]], share: float) -> list[str]:
    """Return the methods that lose least over heads and neurons together."""
    found = {method: value for method in METHODS if (value := mean(rows, method, "both", share)) is not None}
    return sorted(found, key=lambda method: -found[method])[:3]


def mean(rows: list[dict[str, Any]], method: str, kind: str, share: float) -> float | None:
    """Return the mean accuracy of one cell over the draws, in percent; None where it was not measured."""
    found = [row["accuracy"] for row in rows if (row["method"], row["kind"], row["share"]) == (method, kind, share)]
    return 100 * sum(found) / len(found) if found else None


def state(claims: Claims, rows: list[dict[str, Any]]) -> None:
    """State what the issue of all this is: who loses least, and by how much."""
    ours = "joint, compensated"
    for kind, (_, _, shares) in KINDS.items():
        for share in sorted((share for share in shares if share <= 0.5), reverse=True):
            found = {method: value for method in METHODS if (value := mean(rows, method, kind, share)) is not None}
            best = max((method for method in found if method != ours), key=lambda m: found[m], default=None)
            if ours in found and best is not None:
                name = f"{kind}, {1 - share:.0%} removed: points ahead of the best other method"
                claims.at_least(name, found[ours] - found[best], 0, peer=f"{best} {found[best]:.1f}")
    for kind, share, rival, points in (
        ("both", 0.3, "k-prune", 1.0),
        ("both", 0.2, "k-prune", 1.0),
        ("both", 0.3, "kwon", 5.0),
        ("both", 0.2, "kwon", 5.0),
        ("heads", 0.4, "michel", 0.8),
    ):
        value, other = (mean(rows, method, kind, share) for method in (ours, rival))
        if value is not None and other is not None:
            name = f"{kind}, {1 - share:.0%} removed: points ahead of {rival}"
            claims.at_least(name, value - other, points, peer=round(other, 1))


def more_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every study takes."""
    parser.add_argument("--work", type=Path, default=Path("out/encoders"), help="keeps the dense weights")
    parser.add_argument("--picture", type=Path, help="PNG to draw of what is measured")
    parser.add_argument("--recover", action="store_true", help="train the best three for an epoch, too")
    parser.add_argument("--draws", type=int, default=5, help="draws of calibration samples; 0 measures nothing")
    parser.add_argument("--first-draw", type=int, default=0, help="draw to begin with, so that processes share draws")


def run_study(options: argparse.Namespace, build: Callable[[], Study], shown: str = "") -> None:
    """Measure what `--out` does not hold, state the claims, draw; `shown` are the arguments that tables name."""
    before = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else {}
    rows: list[dict[str, Any]] = list(before.get("rows", ()))
    wanted = list(cells([0], 1) if options.quick else cells(range(options.first_draw, options.draws), 4))
    dense, claims = before.get("dense"), Claims()
    if wanted or options.recover or dense is None:
        study = build()
        dense = dense or list(study.judge(study.model))

        def save() -> None:
            if options.out is not None:
                write_json(options.out, {"claims": [], "dense": dense, "rows": rows})

        measure(study, rows, wanted, save)
        for share in (0.5, 0.3) if options.recover else ():
            measure(study, rows, [(0, RECOVERED, share, method) for method in best_three(rows, share)], save)
    if options.quick:
        claims.at_least("cells of an untrained network that were measured", len(rows), len(wanted))
    else:
        state(claims, rows)
    claims.write(options.out, dense=dense, rows=rows, arguments=shown)
    if options.picture is not None:
        draw(rows, 100 * dense[0], options.picture)


def draw(rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Draw mean accuracy against the share that is removed: one panel for each kind of units, the best methods."""
    from matplotlib.figure import Figure  # which only drawing needs

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (kind, (_, quantity, shares)) in zip(
        figure.subplots(1, len(KINDS), sharey=True), KINDS.items(), strict=True
    ):
        for number, method in enumerate(METHODS):
            points = [(1 - share, mean(rows, method, kind, share)) for share in sorted(shares, reverse=True)]
            points = [point for point in points if point[1] is not None]
            if points:
                bold = {"linewidth": 3, "color": "#cc3d8f"} if method == METHODS[0] else {"color": f"C{number % 10}"}
                axes.plot(*zip(*points, strict=True), label=method, marker="os^D"[number % 4], markersize=4, **bold)
        axes.axhline(dense, color="#8a929c", linestyle="--", linewidth=0.9)
        axes.set(title=kind, xlabel=f"{'MACs' if quantity == 'macs' else kind} removed", ylim=(48, 90))
        axes.xaxis.set_major_formatter("{x:.0%}")
    figure.axes[0].set_ylabel("accuracy, %")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
