"""Train, find bottlenecks, widen, train: does a network gain more where it is narrow than anywhere else?

For every seed the dense model is trained, its bottlenecks are found by each method, and models of equal size are made
from it: the narrow groups widened, groups drawn at random widened, all groups widened by one factor, some pruned and
others widened, and none. All are then trained alike.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.bottlenecks.find import find_bottlenecks
from hessprune.bottlenecks.reallocate import reallocate
from hessprune.bottlenecks.values import Bottlenecks
from hessprune.bottlenecks.widths import LARGEST_GROWTH, narrowest_within, widths_within
from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel, cost
from hessprune.deploy.evaluation import evaluate
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_range, optional_import
from hessprune.foundation.files import read_json, writable_folder, write_json, write_text
from hessprune.foundation.formatting import counted, shown
from hessprune.foundation.processes import rank
from hessprune.foundation.progress import Bar, progress_bar
from hessprune.foundation.state import torch_threads
from hessprune.lab.assembly import epoch_points
from hessprune.lab.comparing import CompareSettings
from hessprune.lab.context import Model, Run, open_run
from hessprune.lab.environment import environment, versions
from hessprune.lab.memory import folder_name
from hessprune.lab.report.expansion import Expansion, Variant
from hessprune.lab.report.kept_epochs import kept_epoch
from hessprune.lab.settings import RunSettings, as_json
from hessprune.lab.stages import dense_model, trained
from hessprune.lab.store import StageStore
from hessprune.lab.together import process_group
from hessprune.methods.text import as_method
from hessprune.structure.find import find_groups
from hessprune.surgery.checkpoint import load
from hessprune.surgery.widening import widen

CONTROLS = ("unchanged", "uniform", "random", "reallocated")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpandSettings:
    """Settings: the layers that are widened, and the number of tries.

    Attributes:
        methods: Criteria that find the bottlenecks, such as `"joint"` or `"sosp-h"`.
        growth: Parameters of the wider models, as a multiple of the dense model's.
        seeds: Each trains a dense model of its own, unless the recipe names weights, and draws calibration samples.
        levels: Removed shares at which groups are compared.
        controls: `"unchanged"`, `"uniform"`, `"random"` and `"reallocated"`: pruned by the first method, then widened.
    """

    methods: tuple[str, ...] = ("joint",)
    growth: float = 1.5
    seeds: tuple[int, ...] = (0, 1, 2)
    levels: tuple[float, ...] = (0.3, 0.5, 0.7)
    controls: tuple[str, ...] = CONTROLS

    def __post_init__(self) -> None:
        check_range("growth", self.growth, low=1.01, high=LARGEST_GROWTH)
        for method in self.methods:
            as_method(method)
        for seed in self.seeds:
            check_range("seeds", seed, low=0, integer=True)
        if not self.seeds or not self.methods or set(self.controls) - set(CONTROLS):
            raise ArgumentError(
                f"`methods` and `seeds` must name at least one, and `controls` some of {', '.join(CONTROLS)}, got "
                f"{shown([list(self.methods), list(self.seeds), list(self.controls)])}. Leave them out"
            )

    @classmethod
    def from_text(cls, *, methods: str | None, growth: float | None, seeds: str | None) -> "ExpandSettings":
        """Read what the command line was given; None leaves a default."""
        read = CompareSettings.from_text({"methods": methods, "seeds": seeds})
        given: dict[str, Any] = {"growth": growth} if growth is not None else {}
        given |= {"methods": read.methods} if methods is not None else {}
        return cls(**given, seeds=read.seeds)


def expand(
    settings: RunSettings, out: Path | str, *, expansion: ExpandSettings | None = None, data_root: Path | str = "."
) -> Expansion:
    """Widen the bottlenecks of a recipe's model, and the same model in other ways to the same size; train all.

    Called again after a kill, it continues with the stage that it was at.

    Args:
        settings: Data, model and weights, and `finetune`, by which all are trained after widening.
        out: Receives `expansion.json`, `expansion.html`, `bottlenecks.json` and the finished `stages/`.
        expansion: What to try.
        data_root: What relative paths of the settings refer to.

    Returns:
        Accuracy and cost of every model, for every seed.

    Raises:
        HessPruneError: One clear line: a setting, the data or the model does not fit.
    """
    out = writable_folder(out)
    optional_import("matplotlib", "report")
    asked = expansion or ExpandSettings()
    with torch_threads(settings.threads), process_group():
        run = open_run(settings, out, Path(data_root))
        run = replace(run, store=StageStore(out / "stages", by_content=True))
        variants: list[Variant] = []
        found: dict[str, Any] = {}
        with progress_bar("widening", len(asked.seeds) * (len(asked.methods) + len(asked.controls))) as bar:
            for seed in asked.seeds:
                job = replace(run, settings=replace(settings, seed=seed), data=run.data.with_calibration(seed))
                variants += _variants(job, asked, bar, found)
        result = _result(run, asked, variants, found)
        if rank() == 0:
            result.save(out / "expansion.json")
            write_json(out / "bottlenecks.json", found)
            from hessprune.lab.report.expansion_page import render  # matplotlib, which only drawing needs

            write_text(out / "expansion.html", render(result))
    return result


def _variants(run: Run, asked: ExpandSettings, bar: Bar, found: dict[str, Any]) -> Iterator[Variant]:
    """Yield all models of one seed."""
    dense = dense_model(run)
    limit = Budget(params=int(cost(dense.model, run.example).params * asked.growth))
    yield _measured(run, "dense", {}, dense)
    groups = find_groups(dense.model, run.example)
    costs, units = CostModel(dense.model, run.example, groups), {group.name: group.num_units for group in groups}
    for method in asked.methods:
        narrow = _bottlenecks(run, dense, method, asked)
        found.setdefault(method, {})[str(run.settings.seed)] = narrow.table().splitlines()
        order = {item.group: units[item.group] for item in narrow if item.group in units}
        widths = narrowest_within(costs, order, len(narrow.narrow) or max(1, len(narrow) // 4), limit)
        yield _widened(run, dense, f"bottlenecks by {method}", widths, bar)
    if "random" in asked.controls:
        drawn = random.Random(run.settings.seed).sample([*units], len(units))
        widths = narrowest_within(costs, {name: units[name] for name in drawn}, max(1, len(units) // 4), limit)
        yield _widened(run, dense, "random", widths, bar)
    if "uniform" in asked.controls:
        yield _widened(run, dense, "uniform", widths_within(costs, units, limit), bar)
    if "reallocated" in asked.controls:
        yield _reallocated(run, dense, asked.methods[0], limit, bar)
    if "unchanged" in asked.controls:
        yield _widened(run, dense, "unchanged", {}, bar)


def _bottlenecks(run: Run, dense: Model, method: str, asked: ExpandSettings) -> Bottlenecks:
    """Return the groups, the narrowest first; found once."""

    def make(folder: Path) -> None:
        found = find_bottlenecks(
            dense.model,
            run.example,
            run.batches("calibration"),
            levels=asked.levels,
            method=method,
            loss_fn=run.pruning_loss,
            seed=run.settings.seed,
        )
        write_text(folder / "bottlenecks.json", found.to_json())

    key = (dense.stage, method, list(asked.levels), run.settings.seed, run.data.fingerprint, *run.data_key)
    stage = run.store.run(f"2-bottlenecks-{folder_name(method)}", make, *key)
    return Bottlenecks.from_json(stage.file("bottlenecks.json").read_text("utf-8"))


def _reallocated(run: Run, dense: Model, method: str, limit: Budget, bar: Bar) -> Variant:
    """Prune and widen by one method to the same size, then train and measure as others."""

    def make(folder: Path) -> None:
        found = reallocate(
            dense.model,
            run.example,
            run.batches("calibration"),
            budget=limit,
            method=method,
            loss_fn=run.pruning_loss,
            seed=run.settings.seed,
        )
        found.save(folder / "model")

    key = (dense.stage, method, limit.value, run.settings.seed, run.data.fingerprint, *run.data_key)
    stage = run.store.run(f"4-reallocated-{folder_name(method)}", make, *key)
    model = Model(model=load(stage.file("model"), run.fresh_model).to(run.device), stage=stage)
    units = {group.name: group.num_units for group in find_groups(dense.model, run.example)}
    new = {group.name: group.num_units for group in find_groups(model.model, run.example)}
    widths = {name: number for name, number in new.items() if number != units.get(name)}
    return _tuned(run, dense, "reallocated", lambda: model.model, widths, bar, inputs=[dense.stage, stage])


def _widened(run: Run, dense: Model, name: str, widths: dict[str, int], bar: Bar) -> Variant:
    """Widen, then train as the recipe fine-tunes, and measure."""

    def start() -> nn.Module:
        if not widths:
            return dense.model
        return widen(dense.model, run.example, widths, seed=run.settings.seed).model

    return _tuned(run, dense, name, start, widths, bar, inputs=[dense.stage, widths, run.settings.seed])


def _tuned(
    run: Run,
    dense: Model,
    name: str,
    start: Callable[[], nn.Module],
    widths: dict[str, int],
    bar: Bar,
    *,
    inputs: Sequence[Any],
) -> Variant:
    """Train what `start` returns as the recipe fine-tunes, and measure it."""
    config = run.settings.finetune
    teacher = dense.model if config.distill_weight > 0 else None
    model = trained(run, f"5-widened-{folder_name(name)}", start, config, inputs=inputs, teacher=teacher)
    variant = _measured(run, name, widths, model)
    bar.advance(note=f"{name}: {variant.accuracy:.1%}")
    return variant


def _measured(run: Run, name: str, widths: dict[str, int], model: Model) -> Variant:
    def make(folder: Path) -> None:
        found = evaluate(model.model, run.batches("test"), loss_fn=run.loss_fn, metric=run.metric)
        counted = cost(model.model, run.example)
        write_json(
            folder / "result.json",
            {"accuracy": found.accuracy, "loss": found.loss, "macs": counted.macs, "params": counted.params},
        )

    stage = run.store.run(f"6-measured-{folder_name(name)}", make, model.stage, *run.data_key)
    result = read_json(stage.file("result.json")) | {"epoch": kept_epoch(epoch_points(model.history))}
    return Variant(name=name, seed=run.settings.seed, widths=widths, **result)


def _result(run: Run, asked: ExpandSettings, variants: list[Variant], found: dict[str, Any]) -> Expansion:
    epochs, number = run.settings.finetune.epochs, len(run.data.test)
    plural = "s" if len(asked.seeds) > 1 else ""
    later = [variant for variant in variants if variant.name != "dense"]
    unmoved = sum(variant.epoch == 0 for variant in later)
    kept = f"In {unmoved} of {len(later)} of these trainings epoch 0 was kept: training did not improve it."
    return Expansion(
        title=run.settings.report.title or run.settings.model.name,
        variants=tuple(variants),
        bottlenecks=found,
        settings={"recipe": run.settings.to_json(), "expansion": as_json(asked)},
        versions=versions(),
        environment=environment(),
        data_fingerprint=run.data.fingerprint,
        notes=(
            f"Accuracy on {number:,} test {run.data.noun}s: mean ± standard deviation over {len(asked.seeds)} "
            f"seed{plural}, each with a dense model and calibration {run.data.noun}s of its own.",
            f"Wider models have at most {asked.growth:g} × the parameters, and no group more than {LARGEST_GROWTH:g} × "
            f"its width. All but the dense model train for {counted(epochs, 'more epoch')}, also the unchanged one.",
            *((kept,) if unmoved else ()),
        ),
    )
