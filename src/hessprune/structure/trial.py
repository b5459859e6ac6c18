"""Remove one unit of every group on the meta device and run: sizes that the source code fixes show up as failures."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hessprune._modules import call_model, empty_copy, remove_slices, to_device
from hessprune._state import evaluation_mode
from hessprune.structure.capture import first_line
from hessprune.structure.groups import Group


def without_failures(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group]
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those whose units can go, and those at which the forward fails, with the reason.

    Costs one forward without data when nothing fails, and `O(failures · log groups)` of them otherwise.
    """
    device = "meta" if _problem(model, example_inputs, [], "meta") is None else "cpu"
    working: list[Group] = []
    failures: list[tuple[Group, str]] = []
    pending = [list(groups)]
    while pending:
        batch = pending.pop()
        problem = _problem(model, example_inputs, [*working, *batch], device)
        if problem is None:
            working += batch
        elif len(batch) == 1:
            failures.append((batch[0], f"the source code fixes its size ({problem})"))
        elif batch:
            half = len(batch) // 2
            pending += [batch[half:], batch[:half]]
    order = {group.name: number for number, group in enumerate(groups)}
    return sorted(working, key=lambda group: order[group.name]), failures


def _problem(model: nn.Module, example_inputs: Any, groups: Sequence[Group], device: str) -> str | None:
    """Return why the model fails without the first unit of each group, or None."""
    trial = empty_copy(model) if device == "meta" else copy.deepcopy(model)
    remove_slices(trial, [(piece, [0]) for group in groups for piece in (*group.slices, *group.literals)])
    with torch.no_grad(), warnings.catch_warnings(), evaluation_mode(model), evaluation_mode(trial):
        warnings.simplefilter("ignore")
        try:
            call_model(trial, to_device(example_inputs, device))
        except Exception as error:  # whatever the user's forward raises is the answer
            return first_line(error)
    return None
