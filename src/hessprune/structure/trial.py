"""Remove one unit of every group on the meta device and run: sizes that the source code fixes show up as failures."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from hessprune._modules import call_model, empty_copy, failing_module, remove_slices, to_device
from hessprune.structure.capture import first_line
from hessprune.structure.groups import Group


@dataclass(frozen=True, slots=True)
class Problem:
    """Where the forward failed, and why."""

    module: str
    message: str


def without_failures(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group]
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those whose units can go, and those at which the forward fails, with the reason.

    Costs one forward without numbers when nothing fails, and a few for each kind of module that does.
    """
    trial = _Trial(model, example_inputs)
    working, reasons = list(groups), {}
    while working and (problem := trial.problem(working)):
        for group in _guilty(trial, working, problem):
            reasons[group.name] = f"the source code fixes its size ({problem.message})"
        working = [group for group in working if group.name not in reasons]
    return working, [(group, reasons[group.name]) for group in groups if group.name in reasons]


def _guilty(trial: "_Trial", groups: Sequence[Group], problem: Problem) -> list[Group]:
    """Find a group that makes the forward fail, the ones inside the failing module first, and its likes elsewhere."""
    inside = [group for group in groups if _within(group, problem.module)] if problem.module else []
    others = [group for group in groups if not _within(group, problem.module)]
    if not inside or trial.problem(others):
        inside, others = list(groups), []
    low, high = 0, len(inside)  # inside[:low] works beside the others, inside[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.problem([*others, *inside[:middle]]) else (middle, high)
    return [inside[low], *trial.likewise(groups, inside[low], problem.module)]


def _within(group: Group, module: str) -> frozenset[tuple[str, int]]:
    """Return the slices of a group inside a module, by their names there."""
    prefix = f"{module}."
    inside = [piece for piece in group.slices if piece.param.startswith(prefix)]
    return frozenset((piece.param.removeprefix(prefix), piece.dim) for piece in inside)


class _Trial:
    """A copy of the model whose units are removed and put back; without numbers where the forward allows it."""

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        self._given = model, example_inputs
        self._model, self._inputs = empty_copy(model).eval(), to_device(example_inputs, "meta")

    def problem(self, groups: Sequence[Group]) -> Problem | None:
        """Return what fails without the first unit of each group, or None."""
        found = self._failure(groups)
        if found and self._given and self._failure([]):  # it fails for want of numbers
            self._model, self._inputs = copy.deepcopy(self._given[0]).eval(), self._given[1]
            found = self._failure(groups)
        self._given = None
        return found

    def likewise(self, groups: Sequence[Group], found: Group, module: str) -> list[Group]:
        """Return the groups that fail as `found` does in other modules of the class, each tried there alone."""
        inside, owner = _within(found, module), self._model.get_submodule(module)
        if len(inside) < len(found.slices):
            return []  # it reaches out of the module, so a module alone proves nothing
        likes = {
            name: like for name, like in self._model.named_modules() if type(like) is type(owner) and name != module
        }
        calls = self._calls(likes)
        return [
            group
            for name, call in calls.items()
            for group in groups
            if _within(group, name) == inside and self._failure([group], call)
        ]

    def _calls(self, modules: Mapping[str, nn.Module]) -> dict[str, Callable[[], Any]]:
        """Return the last call of some modules in a forward of the whole, to be made again."""
        calls: dict[str, Callable[[], Any]] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: calls.update({name: partial(module, *args, **kwargs)})

        hooks = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
        self._failure([])
        for hook in hooks:
            hook.remove()
        return calls

    def _failure(self, groups: Sequence[Group], call: Callable[[], Any] | None = None) -> Problem | None:
        """Make a call (the whole forward by default) without the first unit of each group; put the units back."""
        before = [(module, vars(module).copy()) for module in self._model.modules()]
        tables: list[tuple[Any, Any]] = [
            (table, table.copy()) for module, _ in before for table in (module._parameters, module._buffers)
        ]
        remove_slices(self._model, [(piece, [0]) for group in groups for piece in (*group.slices, *group.literals)])
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call() if call else call_model(self._model, self._inputs)
        except Exception as error:  # whatever the user's forward raises is the answer
            return Problem(failing_module(self._model, error), first_line(error))
        finally:
            for module, contents in before:
                vars(module).clear()
                vars(module).update(contents)
            for table, contents in tables:
                table.update(contents)
        return None
