"""`hp.prune`: from a dense model to a smaller one, in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprune.costs.budget import Budget
from hessprune.foundation.bars import shown_progress
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.options import check_flag
from hessprune.foundation.parametrised import naming_computed_weights
from hessprune.foundation.sharded import is_sharded
from hessprune.methods.method import Method
from hessprune.methods.scoring import saliency
from hessprune.methods.text import as_method
from hessprune.methods.values import Saliency
from hessprune.objectives.choice import Chosen
from hessprune.planning.implants import Implant, as_implant
from hessprune.planning.plan import Plan
from hessprune.planning.ranking import Ranking
from hessprune.pruning.kept import with_folder
from hessprune.pruning.measuring import scored_with_moments, with_statistics
from hessprune.pruning.recovery import cut_and_recover
from hessprune.pruning.statistics import Statistics
from hessprune.pruning.steps import plan_in_steps
from hessprune.pruning.task import Task
from hessprune.pruning.timing import with_latency_table
from hessprune.structure.groups import Group
from hessprune.surgery.calibration import holds_few
from hessprune.surgery.result import Result


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class PruneResult(Result):
    """A smaller model, and everything that led to it.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 2)]
        >>> result = hp.prune(net, torch.zeros(1, 4), batches, budget=hp.Budget(macs=0.5), method="magnitude")
        >>> result.model[0].out_features, result.plan.num_removed
        (4, 4)
    """

    plan: Plan
    """Units that left, by group, with method, seed and costs."""
    saliency: Saliency
    """Estimated increase of the loss by each unit of the model that came."""


def prune(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    *,
    budget: Budget,
    method: str | Method = "joint",
    loss_fn: Any = None,
    outputs: Chosen = None,
    implant: float | Implant = 0.0,
    compensate: bool = True,
    ranking: Ranking | None = None,
    seed: int = 0,
    stats: Statistics | None = None,
    sequential: bool | str | Path = False,
    progress: bool = False,
) -> PruneResult:
    """Make a smaller model in one call: groups, saliency, plan, surgery, compensation.

    Args:
        model: The trained model; left untouched.
        example_inputs: One batch as the model takes it; MACs are counted for it.
        batches: Calibration data, a re-iterable of inputs alone, of `(inputs, targets)`, or of mappings with labels
            inside; a few hundred samples, of one size or several.
        budget: What may be left, such as `hp.Budget(macs=0.5)`.
        method: The criterion that decides, by value or as text: `hp.HAP(precision="bf16")`, `"magnitude"`.
        loss_fn: A loss of `(output, targets)` that averages over samples; it judges every stage. Without one, a pruned
            model is judged by how far its outputs are from those of the dense model, and labels are not needed. Nor are
            they with `"next_word"`, cross-entropy of the next word of texts, which are their own labels.
        outputs: Names of the outputs that are compared, or weights by name; all of them if None.
        implant: Share of the units leaving the full zone that keep a low-rank stand-in, the most salient of them.
        compensate: Refit the surviving layers to the dense layers' outputs and re-estimate BatchNorm, each where that
            lowers the loss on calibration samples. No labels are trained on; seconds, not epochs. Where memory holds
            less than half of the samples, as of long texts, a refit by moments of all of them stands beside, as with
            `stats`, and the lower loss on others wins. Without it, too, survivors are refitted between steps, for the
            saliencies of the next one.
        ranking: Floors, `round_to`, layers that stay (`ignore`), and steps between which saliencies are measured anew.
        seed: For whatever the method draws at random.
        stats: From `hp.measure` with the same arguments: the model runs on four samples alone then, and survivors are
            refitted by the moments of the dense model's inputs. The batches are read once, to see that they are the
            same.
        sequential: For a model that is a stack of blocks, such as a language model: refit one block at a time, on many
            more samples in the same memory. A folder keeps the saliencies and each finished block, so that the same
            call continues after a kill; batches are read once more then, to see that they are the same. The plan is the
            same as without, unless `ranking` asks for steps, between which blocks are refitted as well.
        progress: Draw bars on standard error.

    Returns:
        The new model in the mode of the old one, the plan, the saliencies, and the cost before and after.

    Raises:
        HessPruneError: One clear line before the long work: an argument, the data or the model does not fit; or after
            it: the pruned model does not compute what the masked model computes.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 2)]
        >>> result = hp.prune(net, torch.zeros(1, 4), batches, budget=hp.Budget(macs=0.5))
        >>> result.cost_before.macs, result.cost_after.macs
        (48, 24)
    """
    check_flag("compensate", compensate)
    task = Task(
        model=model,
        example_inputs=example_inputs,
        batches=Rereadable.of(batches, model),
        budget=budget,
        method=as_method(method).with_refit(compensate),
        loss_fn=loss_fn,
        outputs=outputs,
        implant=as_implant(implant),
        compensate=compensate,
        ranking=Ranking() if ranking is None else ranking,
        sequential=sequential,
        seed=seed,
    )
    with shown_progress(progress), torch.inference_mode(False), plain_forwards(), naming_computed_weights(model):
        task = task.ready()
        return carry_out(with_folder(task) if stats is None else with_statistics(task, stats))


def carry_out(task: Task) -> PruneResult:
    """Score every unit, plan for the budget, cut, and let the survivors recover; finished stages are remembered."""
    values, plan = decide(task)
    model = cut_and_recover(task, plan)
    return PruneResult(
        model=model, plan=plan, saliency=values, cost_before=plan.cost_before, cost_after=plan.cost_after
    )


def decide(task: Task) -> tuple[Saliency, Plan]:
    """Score every unit, and plan for the budget."""
    values = task.memory.saliency(task.scoring_settings(), lambda: score(task, task.model, task.groups))
    task = with_latency_table(task, values)
    return values, plan_in_steps(task, values, score)


def score(task: Task, model: nn.Module, groups: Sequence[Group]) -> Saliency:
    """Estimate the saliencies of a model's units with the method, the data and the loss of a task."""
    refits = model is task.model and task.compensate and task.sequential is False and not is_sharded(model)
    if refits and holds_few(model, task.batches):
        return scored_with_moments(task, task.measured)
    return saliency(
        model, groups, task.batches, task.method, loss_fn=task.loss_fn, outputs=task.outputs, seed=task.seed
    )
