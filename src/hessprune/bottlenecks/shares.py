"""The share of each group that a pruning removes, at several levels and over draws of the calibration samples."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError, BudgetError, HessPruneError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.formatting import shown
from hessprune.foundation.progress import track
from hessprune.foundation.trees import leading_size, sample_rows, tensors_in
from hessprune.methods.scoring import saliency
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.judging import splits
from hessprune.planning.planner import make_plan
from hessprune.pruning.task import Task


class Draw:
    """One fold of some batches: sample `i`, or batch `i`, belongs to fold `i mod parts`.

    Args:
        batches: The data.
        number: Which fold this is.
        parts: Number of folds.
        apart: Whether the targets have a row for each sample.
    """

    def __init__(self, batches: Rereadable, number: int, parts: int, *, apart: bool) -> None:
        self.batches, self.number, self.parts, self.apart = batches, number, parts, apart

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        start = 0
        for batch, (inputs, targets) in enumerate(self.batches):
            count = leading_size(inputs)
            offsets = torch.arange(count, device="cpu")
            rows = offsets[(start + offsets) % self.parts == self.number]
            start += count
            if not self.apart:
                if batch % self.parts == self.number:
                    yield inputs, targets
            elif len(rows):
                yield sample_rows(inputs, rows), None if targets is None else sample_rows(targets, rows)


def _come_apart(task: Task) -> bool:
    """Return whether the targets of all batches have a row for each sample, which a loss then means by them."""
    for inputs, targets in task.batches:
        count, tensors = leading_size(inputs), list(tensors_in(targets))
        if targets is not None and not (tensors and all(tensor.dim() and len(tensor) == count for tensor in tensors)):
            return False
    inputs, targets = next(iter(task.batches))
    try:
        objective = choose_objective(task.model, task.batches, task.loss_fn, outputs=task.outputs)
    except HessPruneError:  # the method says what is wrong
        return True
    return targets is None or splits(objective, task.model, inputs, targets)


def removed_shares(task: Task, levels: Sequence[float], draws: int) -> tuple[tuple[float, ...], Tensor]:
    """Return the levels within reach, and the removed share of each group at them, `(draws, levels, G)`.

    Draws are of whole batches where the targets do not come apart, and at most as many as there are batches.

    Args:
        task: Model, groups, data, method, loss and ranking; its budget names the quantity.
        levels: Removed shares of that quantity.
        draws: Folds of the calibration samples; each gives saliencies of its own.

    Raises:
        ArgumentError: There are fewer samples than draws.
        BudgetError: No level is within reach.
    """
    samples = sum(leading_size(inputs) for inputs, _ in task.batches)
    if samples < draws:
        raise ArgumentError(f"`draws` must be at most the number of samples, {samples}, got {draws}. Ask for fewer.")
    apart = draws == 1 or _come_apart(task)
    draws = draws if apart else min(draws, sum(1 for _ in task.batches))
    alike = {group.name: torch.zeros(group.num_units, device="cpu") for group in task.groups}
    levels = _within_reach(task, alike, levels)
    found = []
    for number in track(range(draws), "bottlenecks"):
        values = saliency(
            task.model,
            task.groups,
            Draw(task.batches, number, draws, apart=apart) if draws > 1 else task.batches,
            task.method,
            loss_fn=task.loss_fn,
            outputs=task.outputs,
            seed=task.seed + number,
        )
        if number == 0:
            levels = _within_reach(task, values, levels)  # a method may see fewer groups at work
        found.append([_shares(task, values, level) for level in levels])
    return tuple(levels), torch.tensor(found, dtype=torch.float64, device="cpu")


def _within_reach(task: Task, values: Any, levels: Sequence[float]) -> Sequence[float]:
    """Return the levels that can be had with what floors, and groups that a method has not seen, let go."""
    reached, last = [], None
    for level in levels:
        try:
            _shares(task, values, level)
            reached.append(level)
        except BudgetError as error:  # so much of the model cannot go
            last = error
    if not reached:
        raise BudgetError(f"`levels` must hold one within reach, got {shown(tuple(levels))}: {last} Pass lower ones.")
    return reached


def _shares(task: Task, values: Any, level: float) -> list[float]:
    plan = make_plan(
        task.model,
        task.groups,
        values,
        Budget.keeping(task.budget.quantity, round(1 - level, 9)),
        example_inputs=task.example_inputs,
        ranking=replace(task.ranking, ignore=()),  # ignored layers have no group
    )
    return [len(plan.removed.get(group.name, ())) / group.num_units for group in task.groups]
