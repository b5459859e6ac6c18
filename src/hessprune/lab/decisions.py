"""From a dense model to a pruned one: score, plan, cut."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.target import LatencyTarget
from hessprune.curvature import TraceOptions
from hessprune.deploy.evaluation import evaluate
from hessprune.foundation.files import write_text
from hessprune.lab.context import Decision, Model, Run
from hessprune.lab.identity import architecture_of
from hessprune.lab.settings import as_json
from hessprune.lab.store import Stage, load_saliency, save_saliency
from hessprune.latency.table import latency_table, settled, with_measured_latency
from hessprune.methods.scores import Settings
from hessprune.methods.table import COMPENSATING, saliency
from hessprune.planning.packing import digest
from hessprune.planning.plan import Plan
from hessprune.planning.planner import fingerprint, make_plan
from hessprune.pruning.steps import plan_stepwise
from hessprune.structure.groups import Groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.compensation import compensate
from hessprune.surgery.implants.fitting import fit_stand_ins
from hessprune.training.batchnorm import reestimate_batchnorm

SCORING_CODE = ("data", "structure", "curvature", "saliency")
"""What computes saliencies: a change anywhere else leaves them valid."""
PRUNING_CODE = (*SCORING_CODE, "planning", "surgery", "training/batchnorm", "evaluate", "run/decisions", "run/stepwise")
"""What computes pruned models."""
TIMING_CODE = ("structure", "planning", "timing", "latency", "export", "quantize")
"""What measures latency tables."""


def score(run: Run, model: nn.Module, groups: Groups, method: str) -> Stage:
    """Estimate the saliency of every unit on the calibration images; `load_saliency` reads the stage's folder.

    Kept by content: weights, architecture, groups, images, settings and the code that computes. Any two runs that share
    a folder of stages, whatever their budgets, share their saliencies.
    """
    settings, batches = scoring_settings(run, method), run.batches("calibration")
    contents = [fingerprint(model), architecture_of(model), digest(groups), run.data.calibration.digest().hex()]
    reading = [run.data.mean, run.data.std, run.settings.data.batch_size, run.device.type]

    def make(folder: Path) -> None:
        save_saliency(saliency(model, groups, batches, method, settings=settings), folder)

    inputs = (*contents, *reading, as_json(settings))
    return run.store.run(f"2-saliency-{method}", make, *inputs, by_content=True, code=SCORING_CODE)


def scoring_settings(run: Run, method: str) -> Settings:
    """Return what the recipe says about measuring saliency."""
    prune = run.settings.prune
    options = None if prune.num_probes is None else TraceOptions(num_probes=prune.num_probes)
    return Settings(
        seed=run.settings.seed,
        estimator=prune.estimator,
        precision=prune.precision,
        temperature=prune.temperature,
        options=options,
        compensated=prune.compensate or method not in COMPENSATING,
    )


def decide(run: Run, dense: Model, groups: Groups, method: str) -> Decision:
    """Score every unit, and plan for the budget."""
    scored = score(run, dense.model, groups, method)
    values = load_saliency(scored.folder)
    planned = plan_for(run, dense.model, groups, scored, run.settings.prune.budget)
    return Decision(saliency=values, plan=read_plan(planned), scored=scored, planned=planned)


def plan_for(run: Run, model: nn.Module, groups: Groups, scored: Stage, budget: Budget) -> Stage:
    """Plan with the recipe's ranking and step; `read_plan` reads the stage's folder.

    Steps are kept by content, so plans for several budgets share the way as far as they can.
    """
    prune, values = run.settings.prune, load_saliency(scored.folder)
    method, step = values.provenance["method"], prune.step
    timed = latency_for(run, model, groups, scored, budget) if budget.is_latency else None
    stages = [scored] if timed is None else [scored, timed]
    bound = budget.without_target()
    budget = budget if timed is None else replace(budget, target=read_table(timed))

    def remember(limit: Budget, _: Plan | None, make: Callable[[], Plan]) -> Plan:
        def write(folder: Path) -> None:
            plan = make()
            if timed is not None and limit.without_target() == bound:
                plan = with_measured_latency(plan, model, run.example)
            write_text(folder / "plan.json", plan.to_json())

        last = limit.without_target() == bound
        own = last and bound == prune.budget.without_target()
        asked = (limit.without_target(), prune.ranking, prune.implant if last else None)
        name, inputs = "plan" if own else "step", (stages[-1], *map(as_json, asked), step)
        stages.append(run.store.run(f"3-{name}-{method}", write, *inputs, by_content=not own, code=PRUNING_CODE))
        return read_plan(stages[-1])

    plan_stepwise(
        model,
        groups,
        run.batches("calibration"),
        budget,
        example_inputs=run.example,
        values=values,
        step=step,
        settings=scoring_settings(run, method),
        ranking=prune.ranking,
        implant=prune.implant or 0.0,
        remember=remember,
    )
    return stages[-1]


def latency_for(run: Run, model: nn.Module, groups: Groups, scored: Stage, budget: Budget) -> Stage:
    """Measure a latency table, and correct it on what this method plans; `read_table` reads the stage's folder.

    The table itself is kept by content and shared by all methods and budgets.
    """
    prune, values, target = run.settings.prune, load_saliency(scored.folder), latency_target(run)
    contents = [architecture_of(model), digest(groups), list(run.example.shape), run.device.type]
    machine = target.facts(target.batch_size or 1, run.device.type)

    def measure(folder: Path) -> None:
        found = latency_table(model, groups, run.example, target)
        write_text(folder / "latency.json", found.to_json())

    def correct(folder: Path) -> None:
        plan_for = partial(make_plan, model, groups, values, example_inputs=run.example, ranking=prune.ranking)
        found = settled(read_table(table), model, run.example, lambda known: plan_for(replace(budget, target=known)))
        write_text(folder / "latency.json", found.to_json())

    table = run.store.run("3-latency", measure, *contents, machine, by_content=True, code=TIMING_CODE)
    asked = (table, scored, as_json(budget.without_target()), as_json(prune.ranking))
    name = f"3-latency-{values.provenance['method']}"
    return run.store.run(name, correct, *asked, by_content=True, code=(*PRUNING_CODE, *TIMING_CODE))


def latency_target(run: Run) -> LatencyTarget:
    """Return where the recipe counts milliseconds: where the report does, unless it says otherwise."""
    settings = run.settings
    runtime = "torch" if settings.quantize is None else "onnxruntime-int8"
    if isinstance(settings.prune.budget.target, LatencyTarget):
        return settings.prune.budget.target
    return settings.prune.latency or LatencyTarget(runtime=runtime, batch_size=settings.report.latency_batch_size)


def read_table(timed: Stage) -> LatencyTable:
    """Read what `latency_for` left."""
    return LatencyTable.from_json(timed.file("latency.json").read_text("utf-8"))


def read_plan(planned: Stage) -> Plan:
    """Read what `plan_for` left."""
    return Plan.from_json(planned.file("plan.json").read_text("utf-8"))


def prune_by(run: Run, model: nn.Module, plan: Plan) -> nn.Module:
    """Apply a plan and, if the recipe says so, let the survivors compensate."""
    prune, batches = run.settings.prune, run.batches("calibration")
    pruned = cut_by(model, plan, batches, start=prune.implant.start if prune.implant else "fitted")
    return compensated(model, pruned, plan, batches) if prune.compensate else pruned


def cut_by(model: nn.Module, plan: Plan, batches: Any, *, start: str) -> nn.Module:
    """Apply a plan, with the weights that `Implant.start` names in its stand-ins."""
    pruned = apply_plan(model, plan, start="zero" if start == "zero" else "centre")
    return fit_stand_ins(model, pruned, plan, batches) if plan.implanted and start == "fitted" else pruned


def compensated(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Iterable[Any]) -> nn.Module:
    """Refit the surviving layers, then re-estimate BatchNorm, each kept only where it lowers the loss on `batches`."""
    fitted = compensate(dense, pruned, plan, batches)
    if not any(isinstance(module, _BatchNorm) for module in fitted.modules()):
        return fitted
    return min((fitted, reestimate_batchnorm(fitted, batches)), key=lambda item: evaluate(item, batches).loss)
