"""The pruning stages of a run: the tasks of its methods, carried out as `hp.prune` does, with a memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.target import LatencyTarget
from hessprune.foundation.batches import Rereadable
from hessprune.lab.context import Model, Run
from hessprune.lab.memory import StageMemory
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.planning.implants import Implant
from hessprune.planning.plan import Plan
from hessprune.planning.reachable import check_reachable
from hessprune.pruning.prune import carry_out
from hessprune.pruning.task import Task
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group, Groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """The outcome of one method at the run's budget, with the stage that keeps the model."""

    method: str
    saliency: Saliency
    plan: Plan
    model: Model


def groups_of(run: Run, model: nn.Module, ignore: Sequence[str] = (), *, compare: bool = False) -> Groups:
    """Return the groups that the recipe lets go, without further layers to `ignore`; see `find_groups`."""
    ranking = run.settings.prune.ranking
    ignored = (*ranking.ignore, *ignore)
    return find_groups(model, run.example, ignored, compare=compare, gqa=ranking.gqa, units=ranking.units)


def check_pruning(run: Run, model: nn.Module, groups: Sequence[Group]) -> None:
    """Refuse a budget that no weights could meet, before any are trained or scored."""
    prune = run.settings.prune
    check_reachable(model, groups, prune.budget, prune.ranking, run.example)


def prune_by(run: Run, dense: Model, groups: Sequence[Group], method: str) -> Pruned:
    """Prune the dense model by one method; finished stages are read again."""
    memory = StageMemory(run, dense, groups, method, check=lambda: check_pruning(run, dense.model, groups))
    result = carry_out(task_of(run, dense, groups, method, run.settings.prune.budget, memory))
    model = Model(model=result.model, stage=memory.stages["4-pruned"])
    return Pruned(method=method, saliency=result.saliency, plan=result.plan, model=model)


def task_of(run: Run, dense: Model, groups: Sequence[Group], method: str, budget: Budget, memory: StageMemory) -> Task:
    """Return what the recipe asks of one method at one budget."""
    prune = run.settings.prune
    return Task(
        model=dense.model,
        example_inputs=run.example,
        batches=Rereadable.of(run.batches("calibration")),
        budget=replace(budget, target=budget.target or latency_target(run)) if budget.is_latency else budget,
        method=as_method(method).with_refit(prune.compensate),
        loss_fn=run.pruning_loss,
        implant=prune.implant or Implant(share=0.0),
        compensate=prune.compensate,
        sequential=prune.sequential and prune.compensate,
        ranking=prune.ranking,
        seed=run.settings.seed,
        groups=groups,
        memory=memory,
    )


def latency_target(run: Run) -> LatencyTarget:
    """Return where the recipe counts milliseconds: where the report does, unless it says otherwise."""
    settings = run.settings
    runtime = "torch" if settings.quantize is None else "onnxruntime-int8"
    return settings.prune.latency or LatencyTarget(runtime=runtime, batch_size=settings.report.latency_batch_size)
