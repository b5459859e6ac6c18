"""A study of encoders: every way to prune one without training, cell by cell, and what comes of it."""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.files import write_json
from support.claims import Claims
from support.encoder_designs import OURS, Design
from support.encoder_rivals import RIVALS, setting

RECOVERED = "both, one epoch"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A dense encoder with its data, and how it is judged."""

    design: Design
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
        kinds, quantity, _ = self.study.design.kinds[kind]
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
            groups = self.study.of_kind(self.study.design.kinds[kind][0])
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


def best_three(design: Design, rows: list[dict[str, Any]], share: float) -> list[str]:
    """Return the methods that lose least over heads and neurons together."""
    found = {method: value for method in design.methods if (value := mean(rows, method, "both", share)) is not None}
    return sorted(found, key=lambda method: -found[method])[:3]


def mean(rows: list[dict[str, Any]], method: str, kind: str, share: float) -> float | None:
    """Return the mean accuracy of one cell over the draws, in percent; None where it was not measured."""
    found = [row["accuracy"] for row in rows if (row["method"], row["kind"], row["share"]) == (method, kind, share)]
    return 100 * sum(found) / len(found) if found else None


def state(claims: Claims, design: Design, rows: list[dict[str, Any]]) -> None:
    """State by how much we lose less than others."""
    ours, names = design.turns[0][0], {"": "the best other method", "rivals": "the best rival"}
    for kind, share, rival, points in design.ahead:
        found = {name: value for name in design.methods if (value := mean(rows, name, kind, share)) is not None}
        named = {"": design.methods, "rivals": design.rivals}.get(rival, (rival,))
        others = [name for name in found if name != ours and name in named]
        if ours in found and others:
            best = max(others, key=lambda name: found[name])
            name = f"{kind}, {1 - share:.0%} removed: points ahead of {names.get(rival, rival)}"
            claims.at_least(name, found[ours] - found[best], points, peer=f"{best} {found[best]:.1f}")


def more_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every study takes."""
    parser.add_argument("--work", type=Path, default=Path("out/encoders"), help="keeps the dense weights")
    parser.add_argument("--picture", type=Path, help="PNG to draw of what is measured")
    parser.add_argument("--recover", action="store_true", help="train the best three for an epoch, too")
    parser.add_argument("--draws", type=int, default=5, help="draws of calibration samples; 0 measures nothing")
    parser.add_argument("--first-draw", type=int, default=0, help="draw to begin with, so that processes share draws")


def run_study(
    options: argparse.Namespace,
    design: Design,
    build: Callable[[], Study],
    shown: str = "",
    extras: Mapping[str, Callable[[Study], Any]] | None = None,
) -> None:
    """Measure what `--out` does not hold, state the claims, draw.

    Args:
        options: Of the command line.
        design: The cells.
        build: Makes the study.
        shown: Arguments that tables name.
        extras: Further measurements, made once, by their names in the file.
    """
    before = json.loads(options.out.read_text("utf-8")) if options.out and options.out.exists() else {}
    rows: list[dict[str, Any]] = list(before.get("rows", ()))
    wanted = list(design.cells([0], 1) if options.quick else design.cells(range(options.first_draw, options.draws), 4))
    held, claims = {"dense": before.get("dense")} | {name: before.get(name) for name in extras or ()}, Claims()
    if wanted or options.recover or held["dense"] is None:
        study = build()
        held["dense"] = held["dense"] or list(study.judge(study.model))

        def save() -> None:
            if options.out is not None:
                write_json(options.out, {"claims": [], "rows": rows, **held})

        measure(study, rows, wanted, save)
        for share in (0.5, 0.3) if options.recover else ():
            measure(study, rows, [(0, RECOVERED, share, method) for method in best_three(design, rows, share)], save)
        for name, function in (extras or {}).items():
            held[name] = held[name] or function(study)
    if options.quick:
        claims.at_least("cells of an untrained network that were measured", len(rows), len(wanted))
    else:
        state(claims, design, rows)
    claims.write(options.out, rows=rows, arguments=shown, **held)
    if options.picture is not None:
        draw(design, rows, 100 * held["dense"][0], options.picture)


def draw(design: Design, rows: list[dict[str, Any]], dense: float, path: Path) -> None:
    """Draw mean accuracy against the share that is removed: one panel for each kind of units, the best methods."""
    from matplotlib import colormaps  # which only drawing needs
    from matplotlib.figure import Figure

    figure, colors = Figure(figsize=(12, 3.8), layout="constrained"), colormaps["tab20"].colors
    for axes, (kind, (_, quantity, shares)) in zip(
        figure.subplots(1, len(design.kinds)), design.kinds.items(), strict=True
    ):
        for number, method in enumerate(design.methods):
            points = [(1 - share, mean(rows, method, kind, share)) for share in sorted(shares, reverse=True)]
            points = [point for point in points if point[1] is not None]
            if points:
                bold = {"linewidth": 3, "color": "#cc3d8f"} if not number else {"color": colors[number % 20]}
                axes.plot(*zip(*points, strict=True), label=method, marker="os^D"[number % 4], markersize=4, **bold)
        axes.axhline(dense, color="#8a929c", linestyle="--", linewidth=0.9)
        axes.set(title=kind, xlabel=f"{'MACs' if quantity == 'macs' else kind} removed")
        axes.xaxis.set_major_formatter("{x:.0%}")
    figure.axes[0].set_ylabel("accuracy, %")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
