"""Compare methods on one model: every cell is written when it is done, so the same command continues."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.model import cost
from hessprune.deploy.evaluation import evaluate
from hessprune.errors import BudgetError, UnsupportedModelError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.files import read_json, sha256, writable_folder, write_json
from hessprune.foundation.processes import rank
from hessprune.foundation.progress import Bar, progress_bar
from hessprune.foundation.state import torch_threads
from hessprune.lab.comparing import CompareSettings, parse_row, prune_with
from hessprune.lab.context import Model, Run, open_run
from hessprune.lab.environment import environment, versions
from hessprune.lab.memory import StageMemory, folder_name
from hessprune.lab.pruned import groups_of, task_of
from hessprune.lab.report.comparison import Cell, Comparison
from hessprune.lab.settings import RunSettings, as_json
from hessprune.lab.stages import dense_model, trained
from hessprune.lab.store import StageStore
from hessprune.lab.together import process_group
from hessprune.planning.plan import Plan
from hessprune.pruning.prune import decide
from hessprune.pruning.recovery import pruned_by
from hessprune.pruning.task import Task
from hessprune.structure.groups import Groups


def compare(
    settings: RunSettings,
    out: Path | str,
    *,
    comparison: CompareSettings | None = None,
    data_root: Path | str = ".",
) -> Comparison:
    """Prune one model by several methods to several budgets, on several draws of calibration images.

    Called again after a kill, it continues with the cell it was at. Saliencies are kept by content below `out`, so
    another budget costs nothing.

    Args:
        settings: Data, model and weights, ranking, fine-tuning; method and budget of `prune` are not looked at.
        out: Receives `comparison.json`, `comparison.png`, `comparison.html`, and the finished `stages/`.
        comparison: What to compare.
        data_root: What relative paths of the settings refer to.

    Returns:
        All cells; accuracies are means over the draws, their spread the standard deviation over the draws.

    Raises:
        ArgumentError: A setting is out of range, or `ignore` matches nothing.
        BudgetError: Every budget is out of reach.
        DataError: The data are missing, or do not fit the model.
        UnsupportedModelError: The model cannot be captured, or has no units of the asked-for kind.

    Example:
        >>> import tempfile, hessprune as hp
        >>> from hessprune.lab.recipe import load_recipe, packaged_recipe
        >>> settings = load_recipe(packaged_recipe("digits"), ["model.pretrain.epochs=1"])
        >>> asked = hp.CompareSettings(methods=("magnitude",), budgets=(0.5,), seeds=(0,), compensate=(False,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(hp.compare(settings, folder, comparison=asked).cells)
        1
    """
    out = writable_folder(out)
    optional_import("matplotlib", "report")
    asked = comparison or CompareSettings()
    with torch_threads(settings.threads), process_group():
        run = open_run(settings, out, Path(data_root))
        result = _compare(replace(run, store=StageStore(out / "stages", by_content=True)), asked)
        if rank() == 0:
            result.save(out / "comparison.json")
            from hessprune.lab.report.comparison_page import write_comparison  # matplotlib, which only drawing needs

            write_comparison(result, out)
    return result


def _compare(run: Run, asked: CompareSettings) -> Comparison:
    dense = dense_model(run)
    groups = chosen_groups(groups_of(run, dense.model, asked.ignore, compare=True), asked)
    cells: list[Cell] = []
    rates: dict[tuple[str, float, bool], float | None] = {}
    unreachable: dict[str, None] = {}
    with progress_bar("comparing", _num_cells(asked)) as bar:
        for job, label, budget in _jobs(run, asked):
            memory = StageMemory(job, dense, groups, label)
            try:
                task = task_of(job, dense, groups, job.settings.prune.method, job.settings.prune.budget, memory)
                _, plan = decide(task)
            except BudgetError as error:  # below what the floors allow: the table says so and goes on
                unreachable[f"{label}: {error}"] = None
                continue
            row = (label, budget, job.settings.prune.compensate)
            tried = (rates[row],) if row in rates else _rates(run, asked)
            own = [
                Cell(method=label, budget=budget, seed=job.settings.seed, **found)
                for found in _cells(_Row(job, asked, dense, task, plan, label), bar, (None, *tried))
            ]
            if tried:
                rates[row] = max(own[1:], key=lambda cell: cell.validation_accuracy or 0).lr
            cells += own
    if not cells:
        raise BudgetError(f"`budgets` must be reachable by one method at least: {next(iter(unreachable))}")
    return Comparison(
        title=run.settings.report.title or run.settings.model.name,
        quantity=asked.quantity,
        methods=asked.methods,
        budgets=asked.budgets,
        dense=_dense(run, asked, dense, groups),
        cells=tuple(cells),
        unreachable=tuple(unreachable),
        settings={"recipe": run.settings.to_json(), "comparison": as_json(asked)},
        versions=versions(),
        environment=environment(),
        data_fingerprint=run.data.fingerprint,
        notes=_notes(run, asked),
    )


def chosen_groups(groups: Groups, asked: CompareSettings) -> Groups:
    """Return the groups that a comparison prunes: those of the recipe, or the inner channels of blocks.

    Raises:
        UnsupportedModelError: There are no inner channels.
    """
    if asked.channels == "all":
        return groups
    inner = [group for group in groups if len(group.slices_with_role("producer")) == 1]
    if not inner:
        raise UnsupportedModelError("`channels` must be 'all' for this model: every unit is emitted by several layers.")
    return Groups(inner, groups.frozen, groups.unreached)


def _jobs(run: Run, asked: CompareSettings) -> Iterator[tuple[Run, str, float]]:
    """Yield a run for every draw, method, budget and compensation, with method and budget as asked for."""
    for seed in asked.seeds:
        data = run.data.with_calibration(seed)
        for label in asked.methods:
            for budget, compensate in product(asked.budgets, asked.compensate):
                allowed = Budget.keeping(asked.quantity, budget)
                prune = replace(run.settings.prune, budget=allowed, compensate=compensate)
                prune = prune_with(prune, *parse_row(label))
                yield replace(run, data=data, settings=replace(run.settings, seed=seed, prune=prune)), label, budget


@dataclass(frozen=True, slots=True)
class _Row:
    """One method at one budget on one draw."""

    run: Run
    asked: CompareSettings
    dense: Model
    task: Task
    plan: Plan
    label: str


def _cells(row: _Row, bar: Bar, rates: tuple[float | None, ...]) -> Iterator[dict[str, Any]]:
    """Yield everything measured under one plan: fine-tuned at each rate, one-shot where the rate is None."""
    kept = {quantity: row.plan.kept_fraction(quantity) for quantity in ("macs", "params", "units")}
    for lr in rates:
        cell = _cell(row, lr)
        bar.advance(note=f"{row.label}, {kept[row.asked.quantity]:.0%}: {cell['accuracy']:.1%}")
        epochs = 0 if lr is None else row.asked.epochs
        yield {"compensated": row.task.compensate, "epochs": epochs, "lr": lr, **kept, **cell}


def _cell(row: _Row, lr: float | None) -> dict[str, Any]:
    """Measure one model, one-shot without `lr`; read it again if it was measured before."""
    run, asked, name = row.run, row.asked, folder_name(row.label)
    recovery = [row.task.compensate, row.task.sequential is not False, row.task.implant.start]
    shared = (sha256(row.plan.to_json()), row.dense.stage, recovery, *run.data_key)

    @cache
    def start() -> nn.Module:
        return pruned_by(row.task, row.plan)

    def make(folder: Path) -> None:
        best = None
        if lr is None:
            model = start()
        else:
            config = replace(run.settings.finetune, epochs=asked.epochs, lr=lr)
            teacher = row.dense.model if config.distill_weight > 0 else None
            tuned = trained(run, f"5-finetuned-{name}", start, config, inputs=shared, teacher=teacher)
            model, best = tuned.model, max(record["validation_accuracy"] for record in tuned.history)
        found = evaluate(model, run.batches(asked.split), loss_fn=run.loss_fn, metric=run.metric)
        write_json(folder / "cell.json", {"accuracy": found.accuracy, "loss": found.loss, "validation_accuracy": best})

    tuning = None if lr is None else [asked.epochs, lr, run.settings.to_json()["finetune"]]
    stage = run.store.run(f"6-cell-{name}", make, *shared, asked.split, tuning)
    return read_json(stage.file("cell.json"))


def _dense(run: Run, asked: CompareSettings, dense: Model, groups: Groups) -> dict[str, float]:
    """Return what the model does and costs before pruning."""

    def make(folder: Path) -> None:
        found = evaluate(dense.model, run.batches(asked.split), loss_fn=run.loss_fn, metric=run.metric)
        write_json(folder / "cell.json", {"accuracy": found.accuracy, "loss": found.loss})

    stage = run.store.run("6-cell-dense", make, dense.stage, asked.split, *run.data_key)
    counted = cost(dense.model, run.example)
    units = sum(group.num_units for group in groups)
    return read_json(stage.file("cell.json")) | {"macs": counted.macs, "params": counted.params, "units": units}


def _rates(run: Run, asked: CompareSettings) -> tuple[float, ...]:
    """Return the learning rates to fine-tune with."""
    return (asked.lrs or (run.settings.finetune.lr,)) if asked.epochs else ()


def _num_cells(asked: CompareSettings) -> int:
    first, later = (1 + max(len(asked.lrs), 1), 2) if asked.epochs else (1, 1)
    each = len(asked.methods) * len(asked.budgets) * len(asked.compensate)
    return each * (first + later * (len(asked.seeds) - 1))


def _notes(run: Run, asked: CompareSettings) -> tuple[str, ...]:
    """Say what one has to know to read the numbers."""
    number, noun, draws = len(run.data.part(asked.split)), run.data.noun, len(asked.seeds)
    quantity = {"macs": "MACs", "params": "parameters", "units": "channels, whatever they cost,"}[asked.quantity]
    notes = [f"Accuracy in % on {number:,} {asked.split} {noun}s; budgets are shares of the {quantity} that are kept."]
    spread = f": mean ± standard deviation over {draws} draws (seeds {', '.join(map(str, asked.seeds))})"
    notes.append(
        f"Calibration: {len(run.data.calibration):,} training {noun}s, drawn anew by each seed"
        + (spread if draws > 1 else f" (one draw, seed {asked.seeds[0]}: no spread)")
        + "."
    )
    if asked.channels == "inner":
        notes.append("Only channels that a single layer emits are pruned; the residual stream is spared.")
    if len(asked.lrs) > 1 and asked.epochs:
        notes.append("Of several learning rates, the one that validates best on the first draw counts.")
    return tuple(notes)
