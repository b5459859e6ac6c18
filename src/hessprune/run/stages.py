"""The stages of a run, one function each: what a stage depends on, what it computes, what it leaves in its folder.

Each returns what it reads back from the folder, so a resumed run sees the very values of an uninterrupted one.
"""

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessprune import checkpoint
from hessprune._files import read_json, replacing, sha256, write_json, write_text
from hessprune.data import Dataset, ImageBatches, load_dataset
from hessprune.data.dataset import Split
from hessprune.errors import BudgetError
from hessprune.evaluate import compare_latency, evaluate
from hessprune.export import export_onnx
from hessprune.models import build_model, load_weights
from hessprune.planning.budget import Budget
from hessprune.planning.cost import cost
from hessprune.planning.plan import Plan, make_plan
from hessprune.run.settings import RunSettings, as_json
from hessprune.run.stepwise import plan_stepwise
from hessprune.run.store import Stage, StageStore, load_saliency, load_state, save_saliency, save_state
from hessprune.saliency.methods import Settings as SaliencySettings
from hessprune.saliency.methods import saliency
from hessprune.saliency.values import Saliency
from hessprune.structure.groups import Groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.compensation import compensate
from hessprune.training.batchnorm import reestimate_batchnorm
from hessprune.training.config import FinetuneConfig
from hessprune.training.finetune import finetune


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What all stages of one run share."""

    settings: RunSettings
    data: Dataset
    data_root: Path
    store: StageStore

    @property
    def example(self) -> Tensor:
        """One normalised image, `(1, C, H, W)`."""
        return next(iter(self.data.batches("calibration", 1)))[0]

    @property
    def baselines(self) -> tuple[str, ...]:
        """Return the methods that stand beside the recipe's own."""
        wanted = self.settings.report.baselines
        return tuple(m for m in ("magnitude", "random") if wanted and m != self.settings.prune.method)

    def batches(self, split: Split) -> ImageBatches:
        """Return a split in its own order, without augmentation."""
        return self.data.batches(split, self.settings.data.batch_size, shuffle=False)

    def fresh_model(self) -> nn.Module:
        """Build the dense network with initial weights."""
        name, seed = self.settings.model.name, self.settings.seed
        return build_model(name, num_classes=self.data.num_classes, in_channels=self.data.input_shape[0], seed=seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that a stage left, with the history of its training, if any."""

    model: nn.Module
    stage: Stage
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The saliencies of one method, and the plan at the run's budget."""

    saliency: Saliency
    plan: Plan
    scored: Stage
    planned: Stage

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.saliency.provenance["method"]


def open_run(settings: RunSettings, out: Path, data_root: Path) -> Run:
    """Open the folder of finished stages, and load the data."""
    store = StageStore(out / "stages")
    section = settings.data
    data = load_dataset(
        section.source,
        root=None if section.root is None else data_root / section.root,
        seed=settings.seed,
        validation_size=section.validation_size,
        calibration_size=section.calibration_size,
    )
    if section.mean is not None and section.std is not None:
        data = data.with_normalisation(section.mean, section.std)
    return Run(settings=settings, data=data, data_root=data_root, store=store)


def dense_model(run: Run) -> Model:
    """Load the weights, or train the network from scratch."""
    section = run.settings.model
    if section.pretrain is not None:
        return _trained(run, "1-dense", run.fresh_model, section.pretrain, inputs=[section.name, run.settings.seed])
    path = run.data_root / str(section.weights)

    def make(folder: Path) -> None:
        model = run.fresh_model()
        load_weights(model, path)
        save_state(model, folder)

    digest = sha256(path.read_bytes()) if path.is_file() else "missing"
    stage = run.store.run("1-dense", make, section.name, digest, run.data.input_shape, run.data.num_classes)
    return Model(model=load_state(run.fresh_model(), stage.folder), stage=stage)


def decide(run: Run, dense: Model, groups: Groups, method: str) -> Decision:
    """Estimate the saliency of every unit on the calibration images, and plan for the budget."""
    prune = run.settings.prune
    settings = SaliencySettings(seed=run.settings.seed, estimator=prune.estimator, precision=prune.precision)

    def score(folder: Path) -> None:
        save_saliency(saliency(dense.model, groups, run.batches("calibration"), method, settings=settings), folder)

    scored = run.store.run(f"2-saliency-{method}", score, dense.stage, *_data_key(run), as_json(settings))
    values = load_saliency(scored.folder)

    def plan(folder: Path) -> None:
        made = plan_for(run, dense.model, groups, values, prune.budget)
        if prune.steps > 1:
            made, _ = plan_stepwise(
                dense.model,
                groups,
                run.batches("calibration"),
                prune.budget,
                example_inputs=run.example,
                method=method,
                steps=prune.steps,
                settings=settings,
                ranking=prune.ranking,
            )
        write_text(folder / "plan.json", made.to_json())

    planned = run.store.run(
        f"3-plan-{method}", plan, scored, as_json(prune.budget), as_json(prune.ranking), prune.steps
    )
    made = Plan.from_json(planned.file("plan.json").read_text("utf-8"))
    return Decision(saliency=values, plan=made, scored=scored, planned=planned)


def cut(run: Run, dense: Model, decision: Decision) -> Model:
    """Remove what the plan says."""

    def make(folder: Path) -> None:
        model = prune_by(run, dense.model, decision.plan)
        checkpoint.save(model, decision.plan, folder / "model")

    inputs = (dense.stage, decision.planned, run.settings.prune.compensate)
    stage = run.store.run(f"4-pruned-{decision.method}", make, *inputs)
    return Model(model=checkpoint.load(stage.file("model"), run.fresh_model), stage=stage)


def tune(run: Run, dense: Model, pruned: Model, method: str) -> Model:
    """Fine-tune the pruned model; the dense one teaches it where the recipe asks for distillation."""
    config = run.settings.finetune
    teacher = dense.model if config.distill_weight > 0 else None
    return _trained(
        run, f"5-finetuned-{method}", lambda: pruned.model, config, inputs=[pruned.stage, dense.stage], teacher=teacher
    )


def measure(run: Run, name: str, model: Model) -> dict[str, Any]:
    """Return accuracy and loss on test, accuracy on validation, and the cost."""

    def make(folder: Path) -> None:
        test, validation = evaluate(model.model, run.batches("test")), evaluate(model.model, run.batches("validation"))
        counted = cost(model.model, run.example)
        result = {
            "accuracy": test.accuracy,
            "loss": test.loss,
            "num_samples": test.num_samples,
            "validation_accuracy": validation.accuracy,
            "macs": counted.macs,
            "params": counted.params,
            "size_bytes": counted.bytes,
        }
        write_json(folder / "result.json", result)

    stage = run.store.run(f"6-measured-{name}", make, model.stage, *_data_key(run))
    return read_json(stage.file("result.json"))


def latencies(run: Run, models: Mapping[str, Model]) -> dict[str, dict[str, Any]]:
    """Time all models in turns: one image, one thread."""
    repeats = run.settings.report.latency_repeats

    def make(folder: Path) -> None:
        timed = compare_latency({name: item.model for name, item in models.items()}, run.example, repeats=repeats)
        write_json(folder / "latency.json", {name: asdict(value) for name, value in timed.items()})

    stage = run.store.run("7-latency", make, *[item.stage for item in models.values()], repeats)
    return read_json(stage.file("latency.json"))


def curve(run: Run, dense: Model, groups: Groups, decision: Decision) -> list[dict[str, Any]]:
    """Return validation accuracy of one method at several budgets, each applied at once and not trained."""
    fractions = run.settings.report.curve

    def make(folder: Path) -> None:
        write_json(folder / "curve.json", [point for share in fractions for point in at(share)])

    def at(fraction: float) -> list[dict[str, Any]]:
        try:
            plan = plan_for(run, dense.model, groups, decision.saliency, Budget(macs=fraction))
        except BudgetError:  # below what the floors allow: the curve ends before
            return []
        accuracy = evaluate(prune_by(run, dense.model, plan), run.batches("validation")).accuracy
        kept = plan.cost_after.macs / plan.cost_before.macs
        return [{"method": decision.method, "macs_fraction": kept, "accuracy": accuracy}]

    prune = run.settings.prune
    stage = run.store.run(
        f"8-curve-{decision.method}", make, decision.scored, list(fractions), as_json(prune.ranking), prune.compensate
    )
    return read_json(stage.file("curve.json"))


def export(run: Run, model: Model, path: Path) -> None:
    """Write the model as ONNX, checked against torch."""
    stage = run.store.run(
        "9-onnx", lambda folder: export_onnx(model.model, run.example, folder / path.name), model.stage
    )
    with replacing(path) as temporary:
        shutil.copyfile(stage.file(path.name), temporary)


def plan_for(run: Run, model: nn.Module, groups: Groups, values: Saliency, budget: Budget) -> Plan:
    """Plan with the recipe's ranking."""
    ranking = run.settings.prune.ranking
    return make_plan(model, groups, values, budget, example_inputs=run.example, ranking=ranking)


def prune_by(run: Run, model: nn.Module, plan: Plan) -> nn.Module:
    """Apply a plan and, if the recipe says so, let the survivors compensate."""
    pruned = apply_plan(model, plan)
    return compensated(model, pruned, plan, run.batches("calibration")) if run.settings.prune.compensate else pruned


def compensated(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Iterable[Any]) -> nn.Module:
    """Refit the surviving layers, then re-estimate BatchNorm, each kept only where it lowers the loss on `batches`."""
    fitted = compensate(dense, pruned, plan, batches)
    if not any(isinstance(module, _BatchNorm) for module in fitted.modules()):
        return fitted
    return min((fitted, reestimate_batchnorm(fitted, batches)), key=lambda item: evaluate(item, batches).loss)


def _trained(
    run: Run,
    name: str,
    start: Callable[[], nn.Module],
    config: FinetuneConfig,
    *,
    inputs: Sequence[Any],
    teacher: nn.Module | None = None,
) -> Model:
    """Train from `start()`; a killed training continues from the checkpoints it left in the stage's folder."""
    config = replace(config, seed=config.seed + run.settings.seed)
    section = run.settings.data
    train = run.data.batches("train", section.batch_size, augment=section.augment, seed=config.seed)

    def make(folder: Path) -> None:
        partial = folder / "partial"
        result = finetune(
            start(), train, run.batches("validation"), config=config, teacher=teacher, checkpoint_dir=partial
        )
        save_state(result.model, folder)
        write_json(folder / "history.json", [asdict(record) for record in result.history])
        shutil.rmtree(partial, ignore_errors=True)

    stage = run.store.run(name, make, *inputs, as_json(config), as_json(section), *_data_key(run))
    return Model(
        model=load_state(copy.deepcopy(start()), stage.folder),
        stage=stage,
        history=read_json(stage.file("history.json")),
    )


def _data_key(run: Run) -> list[Any]:
    return [run.data.fingerprint, run.data.mean, run.data.std, run.settings.data.batch_size]
