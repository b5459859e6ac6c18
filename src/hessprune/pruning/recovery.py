"""Surgery, and recovery without training: implants are fitted, survivors refitted, BatchNorm re-estimated."""

import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from torch import nn

from hessprune.foundation.batches import Rereadable
from hessprune.foundation.modules import device_of
from hessprune.foundation.trees import to_device
from hessprune.objectives.choice import Chosen, choose_objective
from hessprune.objectives.judging import mean_losses
from hessprune.planning.plan import Plan
from hessprune.pruning.measuring import layer_moments
from hessprune.pruning.task import Task
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.calibration import behind, holds_few, most_samples
from hessprune.surgery.compensation import compensate
from hessprune.surgery.config import is_said
from hessprune.surgery.implants.fitting import fit_stand_ins
from hessprune.surgery.sequential import compensate_by_block
from hessprune.surgery.takeover import take_over
from hessprune.training.batchnorm import has_batchnorm, reestimate_batchnorm

JUDGES = 128
"""Samples that decide between two states of BatchNorm, at least, in whole batches spread over all."""

FEWEST_JUDGES = 16
"""Samples that decide between two refits where memory holds fewer, as of long texts."""

_log = logging.getLogger(__name__)


def cut_and_recover(task: Task, plan: Plan) -> nn.Module:
    """Return the model that a plan leaves, recovered as far as the task asks for."""
    last = task.planning_settings(plan.budget, last=True) | {"compensate": task.compensate}
    return task.memory.model(last, plan, lambda: pruned_by(task, plan))


def pruned_by(task: Task, plan: Plan) -> nn.Module:
    """Apply a plan, fit its implants and, if the task says so, let the survivors compensate."""
    start = "zero" if task.implant.start == "zero" else "centre"
    pruned = apply_plan(task.model, plan, example_inputs=task.example_inputs, start=start)
    if task.ranking.uniform and not is_said(pruned):
        _log.warning(
            "the config of %s cannot say the widths of the pruned model, so from_pretrained cannot read what its "
            "save_pretrained writes: use hp.save and hp.load, or name layers that must stay in `ranking.ignore`",
            type(task.model).__name__,
        )
    if plan.implanted and task.implant.start == "fitted":
        pruned = fit_stand_ins(task.model, pruned, plan, task.batches)
    if not task.compensate:
        return pruned
    if task.moments is not None and not plan.implanted and task.sequential is False:
        return take_over(task.model, pruned, plan, task.moments, task.example_inputs)
    refit = compensate if task.sequential is False else partial(compensate_by_block, folder=task.folder)
    passes = recovered(task.model, pruned, plan, task.batches, task.loss_fn, task.outputs, refit=refit)
    if plan.implanted or task.sequential is not False or not holds_few(pruned, task.batches):
        return passes
    return _better_by_moments(task, plan, pruned, passes)


def _better_by_moments(task: Task, plan: Plan, pruned: nn.Module, passes: nn.Module) -> nn.Module:
    """Return `passes`, or the model refitted by moments of all samples, whichever has the lower loss on others.

    Passes hold all samples at once, so that a refit by them has read few texts; on five of 512 words there is none.
    """
    moments = task.measured or layer_moments(task)
    other = take_over(task.model, pruned, plan, moments, task.example_inputs)
    size = most_samples(pruned, to_device(next(iter(task.batches))[0], device_of(pruned)))
    number = min(JUDGES, max(FEWEST_JUDGES, size))
    judging = [*behind(task.batches, size, size=size, number=number)] or [next(iter(task.batches))]
    objective = choose_objective(task.model, task.batches, task.loss_fn, outputs=task.outputs)
    losses = mean_losses(objective, task.model, [passes, other], judging)
    if losses[1] < losses[0]:
        _log.info("memory holds %d samples for a refit: the moments of all served; sequential=True may do better", size)
    return other if losses[1] < losses[0] else passes


def recovered(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    batches: Any,
    loss_fn: Any = None,
    outputs: Chosen = None,
    *,
    refit: Callable[..., nn.Module] = compensate,
) -> nn.Module:
    """Refit the surviving layers, then re-estimate BatchNorm; each is kept only where it lowers the loss."""
    batches = Rereadable.of(batches, dense)
    objective = choose_objective(dense, batches, loss_fn, outputs=outputs)
    fitted = refit(dense, pruned, plan, batches, loss_fn=objective)
    if not has_batchnorm(fitted):
        return fitted
    candidates = (fitted, reestimate_batchnorm(fitted, batches))
    stride = max(1, batches.count() // JUDGES)
    losses = mean_losses(objective, dense, candidates, islice(batches, 0, None, stride))
    return candidates[losses[1] < losses[0]]
