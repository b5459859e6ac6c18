"""The stages of a run, one function each: what a stage depends on, what it computes, what it leaves in its folder.

Each returns what it reads back from the folder, so a resumed run sees the very values of an uninterrupted one.
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.model import cost
from hessprune.deploy.evaluation import evaluate
from hessprune.deploy.export import export_onnx
from hessprune.errors import BudgetError
from hessprune.foundation.files import exists, read_json, replacing, write_json
from hessprune.foundation.hashing import file_sha256
from hessprune.lab.context import Model, Run
from hessprune.lab.environment import timed_on
from hessprune.lab.memory import StageMemory, folder_name
from hessprune.lab.models import load_weights
from hessprune.lab.pruned import Pruned, task_of
from hessprune.lab.settings import as_json
from hessprune.lab.store import load_state, save_state
from hessprune.latency.measure import compare_latency
from hessprune.pruning.prune import decide
from hessprune.pruning.recovery import pruned_by
from hessprune.structure.groups import Groups
from hessprune.training.config import FinetuneConfig
from hessprune.training.finetune import finetune


def dense_model(run: Run, check: Callable[[nn.Module], object] | None = None) -> Model:
    """Load the weights, or train the network from scratch, which `check` may refuse before its first step."""
    section = run.settings.model
    if section.pretrain is not None:
        key = [*run.model_key, run.settings.seed]
        return trained(run, "1-dense", run.fresh_model, section.pretrain, inputs=key, check=check)
    path = None if section.weights is None else run.data_root / section.weights

    def make(folder: Path) -> None:
        model = run.fresh_model()
        if path is not None:
            load_weights(model, path)
        save_state(model, folder)

    key = [*run.model_key, _digest(path) if path is not None else run.settings.seed]
    stage = run.store.run("1-dense", make, *key, run.data.input_shape, run.data.num_classes)
    return Model(model=load_state(run.fresh_model(), stage.folder), stage=stage)


def _digest(path: Path) -> str:
    return file_sha256(path) if exists(path) and path.is_file() else "missing"


def tune(run: Run, dense: Model, pruned: Pruned) -> Model:
    """Fine-tune the pruned model; the dense one teaches it where the recipe asks for distillation."""
    config = run.settings.finetune
    teacher = dense.model if config.distill_weight > 0 else None
    name, inputs = f"5-finetuned-{folder_name(pruned.method)}", [pruned.model.stage, dense.stage]
    return trained(run, name, lambda: pruned.model.model, config, inputs=inputs, teacher=teacher)


def measure(run: Run, name: str, model: Model) -> dict[str, Any]:
    """Return accuracy and loss on test, accuracy on validation, both perplexities of language models, and the cost."""

    def make(folder: Path) -> None:
        counted = cost(model.model, run.example)
        sizes = {"macs": counted.macs, "params": counted.params, "size_bytes": counted.bytes}
        write_json(folder / "result.json", quality(run, model.model) | sizes)

    stage = run.store.run(f"6-measured-{name}", make, model.stage, *run.data_key)
    return read_json(stage.file("result.json"))


def quality(run: Run, model: Any) -> dict[str, Any]:
    """Return accuracy, loss and, of language models, perplexity of a module or a file, on test and validation."""
    test, validation = (
        evaluate(model, run.batches(part), loss_fn=run.loss_fn, metric=run.metric) for part in ("test", "validation")
    )
    result = {
        "accuracy": test.accuracy,
        "loss": test.loss,
        "num_samples": test.num_samples,
        "validation_accuracy": validation.accuracy,
    }
    if run.metric is not None:
        result |= {"perplexity": test.metric, "validation_perplexity": validation.metric}
    return result


def latencies(run: Run, models: Mapping[str, Model], files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Time all models in turns on one thread; those that have an ONNX file as that file."""
    repeats, number = run.settings.report.latency_repeats, run.settings.report.latency_batch_size

    def make(folder: Path) -> None:
        timed_models = {name: files.get(name, model.model) for name, model in models.items()}
        same = {name: _first_alike(timed_models, name) for name in models}  # a file is timed once
        once = {name: timed_models[name] for name in dict.fromkeys(same.values())}
        timed = compare_latency(once, run.data.example("test", number), repeats=repeats)
        write_json(folder / "latency.json", {name: asdict(timed[first]) for name, first in same.items()})

    stage = run.store.run(
        "7-latency", make, *[item.stage for item in models.values()], sorted(files), repeats, number, timed_on(run)
    )
    return read_json(stage.file("latency.json"))


def _first_alike(timed: Mapping[str, nn.Module | Path], name: str) -> str:
    """Return the first name under which the same file or module is timed."""
    return next(other for other, value in timed.items() if value is timed[name] or value == timed[name])


def curve(run: Run, dense: Model, groups: Groups, method: str) -> list[dict[str, Any]]:
    """Return validation accuracy of one method at several budgets, not trained, over draws of calibration samples."""
    draws = range(run.settings.report.draws)
    return [point for draw in draws for point in _curve_of_draw(run, dense, groups, method, draw)]


def _curve_of_draw(run: Run, dense: Model, groups: Groups, method: str, draw: int) -> list[dict[str, Any]]:
    """Return the points of one draw, the first with the run's own samples; with the refit, and if asked without."""
    seed, own = run.settings.seed + draw, run.settings.prune.compensate
    ways = (True, False) if run.settings.report.refits == "both" else (own,)
    data = run.data.with_calibration(seed)

    def make(folder: Path) -> None:
        shares = run.settings.report.curve
        write_json(folder / "curve.json", [point for way in ways for share in shares for point in at(share, way)])

    def at(share: float, refitted: bool) -> Iterator[dict[str, Any]]:
        prune = replace(run.settings.prune, compensate=refitted)
        job = replace(run, data=data, settings=replace(run.settings, seed=seed, prune=prune))
        memory = StageMemory(job, dense, groups, method, own_plan=False)
        task = task_of(job, dense, groups, method, Budget(macs=share), memory)
        try:
            _, plan = decide(task)
        except BudgetError:  # below the floors: the curve ends before
            return
        found = evaluate(pruned_by(task, plan), run.batches("validation"), loss_fn=run.loss_fn, metric=run.metric)
        facts = {"method": method, "macs_fraction": plan.kept_fraction("macs"), "accuracy": found.accuracy}
        facts |= {} if found.metric is None else {"perplexity": found.metric}
        yield facts | {"draw": draw, "refitted": refitted}

    shares = list(run.settings.report.curve)
    settings = as_json(run.settings.prune) | {"budget": None, "method": method, "curve": shares}
    key = (dense.stage, settings, list(ways), seed, data.fingerprint, *run.data_key)
    name = f"8-curve-{folder_name(method)}" + (f"-draw-{draw + 1}" if run.settings.report.draws > 1 else "")
    stage = run.store.run(name, make, *key, by_content=True)
    return read_json(stage.file("curve.json"))


def export(run: Run, name: str, model: Model) -> Path:
    """Return an ONNX file of the model, checked against torch; it takes sentences of any length."""
    lengths = run.data.has_lengths
    stage = run.store.run(
        f"9-onnx-{name}",
        lambda folder: export_onnx(model.model, run.example, folder / "model.onnx", dynamic_length=lengths),
        model.stage,
    )
    return stage.file("model.onnx")


def deliver(file: Path, path: Path) -> None:
    """Copy a stage's file to where the user looks for it."""
    with replacing(path) as temporary:
        shutil.copyfile(file, temporary)


def trained(
    run: Run,
    name: str,
    start: Callable[[], nn.Module],
    config: FinetuneConfig,
    *,
    inputs: Sequence[Any],
    teacher: nn.Module | None = None,
    check: Callable[[nn.Module], object] | None = None,
) -> Model:
    """Train from `start()`; a killed training continues from the checkpoints it left in the stage's folder.

    A training that starts afresh first calls `check` with the model, which may refuse it.
    """
    config = replace(config, seed=config.seed + run.settings.seed)
    section = run.settings.data
    train = run.data.batches("train", section.batch_size, augment=section.augment, seed=config.seed)

    def make(folder: Path) -> None:
        partial, model = folder / "partial", start()
        if check is not None and not partial.exists():
            check(model)
        result = finetune(
            model,
            train,
            run.batches("validation"),
            config=config,
            loss_fn=run.loss_fn,
            metric=run.metric,
            teacher=teacher,
            checkpoint_dir=partial,
        )
        save_state(result.model, folder)
        write_json(folder / "history.json", [asdict(record) for record in result.history])
        shutil.rmtree(partial, ignore_errors=True)

    stage = run.store.run(name, make, *inputs, as_json(config), as_json(section), *run.data_key)
    return Model(
        model=load_state(copy.deepcopy(start()), stage.folder),
        stage=stage,
        history=read_json(stage.file("history.json")),
    )
