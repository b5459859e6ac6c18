"""The stages in order: `prune` for a model in memory, `run` for a whole recipe. The one place that imports them all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget, check_budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.model import Cost
from hessprune.costs.target import LatencyTarget
from hessprune.foundation.checks import check_batches, check_finite_parameters, optional_import
from hessprune.foundation.files import writable_folder
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import torch_threads
from hessprune.lab import context, integers, stages
from hessprune.lab.assembly import assemble
from hessprune.lab.decisions import compensated, cut_by, decide
from hessprune.lab.report.html import write_html
from hessprune.lab.report.run_report import RunReport
from hessprune.lab.settings import RunSettings
from hessprune.latency.table import table_for, with_measured_latency
from hessprune.methods.scores import Settings
from hessprune.methods.table import saliency
from hessprune.methods.values import Saliency
from hessprune.planning.implants import Implant, as_implant, check_no_stand_ins
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan
from hessprune.planning.ranking import Ranking
from hessprune.pruning.steps import plan_stepwise
from hessprune.quantize.targets import check_target
from hessprune.structure.find import Ignored, find_groups
from hessprune.surgery import checkpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """A smaller model, and everything that led to it."""

    model: nn.Module
    plan: Plan
    saliency: Saliency
    cost_before: Cost
    cost_after: Cost


def prune(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    *,
    budget: Budget,
    method: str = "joint",
    implant: float | Implant = 0.0,
    compensate: bool = True,
    ignore: Sequence[Ignored] = (),
    ranking: Ranking | None = None,
    settings: Settings | None = None,
    step: float = 1.0,
    latency: LatencyTarget | LatencyTable | None = None,
    seed: int = 0,
) -> PruneResult:
    """Make a smaller model in one call: groups, saliency, plan, surgery.

    Args:
        model: The trained model; left untouched.
        example_inputs: One batch as the model takes it; MACs are counted for it.
        batches: Calibration data, a re-iterable of `(inputs, targets)`; a few hundred samples.
        budget: What may be left, such as `Budget(macs=0.5)`.
        method: Which saliency decides.
        implant: Share of the units leaving the full zone that keep a low-rank stand-in, the most salient of them;
            an `Implant` also says of what form. With a `step`, in the last one.
        compensate: Refit the surviving layers to the dense layers' outputs, and re-estimate BatchNorm statistics, each
            where that lowers the loss on calibration samples. No labels are trained on; seconds, not epochs.
        ignore: Layers whose outputs keep their width: modules, module types, or name patterns.
        ranking: Floors, `round_to`, and whether saliency is taken per cost saved.
        settings: Estimator, precision and loss of the saliency; its own seed then counts.
        step: Share of the budgeted quantity to remove before saliencies are measured anew, on the compensated model so
            far; 1 decides at once.
        latency: For a budget of time: runtime, threads and batch size, on which a table is measured, or one that was
            measured before. Plans are measured too, and the table is corrected by them.
        seed: For whatever the method draws at random.

    Returns:
        The new model in the mode of the old one, the plan, the saliencies, and the cost before and after.

    Raises:
        ArgumentError: An argument is out of range.
        BudgetError: The budget is out of reach.
        DataError: The batches are one-shot, empty, or do not fit the model.
        NumericalError: Weights are not finite.
        UnsupportedModelError: The model cannot be captured, or nothing in it can be pruned.
        VerificationError: The pruned model does not compute what the masked model computes.

    Example:
        >>> import torch, hessprune as hp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 2)]
        >>> result = hp.prune(net, torch.zeros(1, 4), batches, budget=hp.Budget(macs=0.5))
        >>> result.cost_before.macs, result.cost_after.macs
        (48, 24)
    """
    check_budget(budget)
    budget = budget if latency is None else replace(budget, target=latency)
    implant = as_implant(implant)
    check_no_stand_ins(implant, budget)
    check_batches(batches)
    check_finite_parameters(model)
    groups = find_groups(model, example_inputs, ignore)
    settings = replace(settings or Settings(seed=seed), compensated=compensate)
    values = saliency(model, groups, batches, method, settings=settings)
    if budget.is_latency:
        plan_for = partial(make_plan, model, groups, values, example_inputs=example_inputs, ranking=ranking)
        table = table_for(
            model, groups, example_inputs, budget.target, lambda found: plan_for(replace(budget, target=found))
        )
        budget = replace(budget, target=table)
    plan = plan_stepwise(
        model,
        groups,
        batches,
        budget,
        example_inputs=example_inputs,
        values=values,
        step=step,
        settings=settings,
        ranking=ranking,
        implant=implant,
    )
    if budget.is_latency:
        plan = with_measured_latency(plan, model, example_inputs)
    smaller = cut_by(model, plan, batches, start=implant.start)
    if compensate:
        smaller = compensated(model, smaller, plan, batches)
    return PruneResult(
        model=smaller, plan=plan, saliency=values, cost_before=plan.cost_before, cost_after=plan.cost_after
    )


def run(settings: RunSettings, out: Path | str, *, data_root: Path | str = ".") -> RunReport:
    """Run a recipe from data to report; called again after a kill, it continues from its last finished stage or step.

    Args:
        settings: What to do.
        out: Receives `report.html`, `report.json`, `model/`, `model.onnx`, `int8.onnx` and the finished
            `stages/`.
        data_root: What relative paths of the settings refer to.

    Returns:
        The report; `report.json` holds the same.
    """
    out = writable_folder(out)
    _check_extras(settings)
    with torch_threads(settings.threads):
        report = _run(settings, out, Path(data_root))
    report.save(out / "report.json")
    write_html(report, out / "report.html")
    return report


def _run(settings: RunSettings, out: Path, data_root: Path) -> RunReport:
    """All stages, in order."""
    job = context.open_run(settings, out, data_root)
    dense = stages.dense_model(job)
    groups = find_groups(dense.model, job.example)

    own = settings.prune.method
    decisions = {method: decide(job, dense, groups, method) for method in (own, *job.baselines)}
    pruned = {method: stages.cut(job, dense, decision) for method, decision in decisions.items()}
    trained = decisions if settings.report.baselines == "finetuned" else (own,)
    tuned = {method: stages.tune(job, dense, pruned[method], method) for method in trained}

    models = {"dense": dense, "pruned": pruned[own], "finetuned": tuned[own]}
    others = {f"{method}-pruned": pruned[method] for method in job.baselines}
    others |= {f"{method}-finetuned": tuned[method] for method in job.baselines if method in tuned}
    measured = {name: stages.measure(job, name, model) for name, model in (models | others).items()}
    files: dict[str, Path] = {}
    if settings.quantize is not None:
        int8 = integers.quantize(job, tuned[own], settings.quantize)
        files = integers.onnx_files(job, dense, tuned[own], int8)
        measured["int8"] = integers.measure_file(job, int8, measured["finetuned"])
        models["int8"] = int8
    report = assemble(
        job,
        decisions[own],
        models,
        measured=measured,
        latency=stages.latencies(job, models, files),
        curve=[point for decision in decisions.values() for point in stages.curve(job, dense, groups, decision)],
    )

    checkpoint.save(tuned[own].model, decisions[own].plan, out / "model")
    if settings.export.onnx:
        stages.deliver(stages.export(job, "finetuned", tuned[own]), out / "model.onnx")
    if "int8" in files:
        stages.deliver(files["int8"], out / "int8.onnx")
    return report


def _check_extras(settings: RunSettings) -> None:
    """Fail before the work, not after it, where a package for the last stages is missing."""
    optional_import("matplotlib", "report")
    if settings.export.onnx or settings.quantize is not None:
        optional_import("onnxruntime", "export")
    if settings.quantize is not None:
        check_target(settings.quantize.target)
        with quiet():  # what its import has to say about kernels for other machines
            optional_import("torchao.quantization.pt2e", "quantize")
