"""Sizes that the source code fixes: which groups fail on trial, and which attributes must follow to set them free."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hessprune.foundation.modules import split_name
from hessprune.structure.groups import Group, Literal
from hessprune.structure.trial import Problem, Trial


def without_failures(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group]
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those whose units can go, and those at which the forward fails, with the reason.

    Where a size is held by an integer attribute of a module (`num_heads`, `width`), the attribute becomes a literal of
    the group: it follows from then on. Costs one forward without numbers when nothing fails, and a few for each kind of
    module that does.
    """
    trial = Trial(model, example_inputs)
    working, reasons = {group.name: group for group in groups}, {}
    freed: dict[str, str] = {}
    while working and (problem := trial.problem([*working.values()])):
        why = f"the source code fixes its size ({problem.message})"
        beside, culprits = _culprits(trial, [*working.values()], problem)
        for group, module in culprits:
            better = None if group.name in freed else _with_literals(trial, group, module, beside)
            if better:
                working[group.name], freed[group.name] = better, why
            else:
                reasons[group.name] = why
                del working[group.name]
    for name in _disagreeing(trial, working, freed):
        reasons[name] = freed[name]
        del working[name]
    return [*working.values()], [(group, reasons[group.name]) for group in groups if group.name in reasons]


def _culprits(trial: Trial, groups: Sequence[Group], problem: Problem) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Find groups that make the forward fail, each with the module it fails in, and what works beside the first.

    Groups inside the failing module are suspected first; a group that lies as a whole in some module around it has
    likes in other modules of the class, each of which is tried there alone.
    """
    inside = [group for group in groups if _within(group, problem.module)] if problem.module else []
    others = [group for group in groups if not _within(group, problem.module)]
    if not inside or trial.problem(others):
        inside, others = list(groups), []
    low, high = 0, len(inside)  # inside[:low] works beside the others, inside[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.problem([*others, *inside[:middle]]) else (middle, high)
    first = inside[low]
    whole = (name for name in _outwards(problem.module) if len(_within(first, name)) == len(first.slices))
    module = next(whole, problem.module)
    return [*others, *inside[:low]], [(first, module), *_likewise(trial, groups, first, module)]


def _likewise(trial: Trial, groups: Sequence[Group], found: Group, module: str) -> Iterator[tuple[Group, str]]:
    """Yield the groups that fail as `found` does, in other modules of the class."""
    within, owner = _within(found, module), trial.model.get_submodule(module)
    if len(within) == len(found.slices):  # else it reaches out of the module, which alone proves nothing
        likes = {name for name, like in trial.model.named_modules() if type(like) is type(owner) and name != module}
        for name, call in trial.calls(likes).items():
            for group in groups:
                if _within(group, name) == within and trial.failure([group], call):
                    yield group, name


def _with_literals(trial: Trial, group: Group, module: str, beside: Sequence[Group]) -> Group | None:
    """Return the group with attributes that make it work, the fewest and innermost ones, or None."""
    is_inside = len(_within(group, module)) == len(group.slices)
    call = trial.calls({module}).get(module) if is_inside else None
    for literals in _choices(trial.model, group, module):
        better = replace(group, literals=(*group.literals, *literals))
        if not trial.failure([better] if call else [*beside, better], call):
            return better
    return None


def _choices(model: nn.Module, group: Group, module: str) -> Iterator[tuple[Literal, ...]]:
    """Yield sets of attributes that may count the units: single ones, all of one module, all of them."""
    names = [module, *(split_name(piece.param)[0] for piece in group.slices)]
    around = dict.fromkeys(outer for name in names for outer in _outwards(name))
    found = [_counting(model.get_submodule(name), name, group) for name in around]
    yield from ((literal,) for literals in found for literal in literals)
    yield from (literals for literals in found if len(literals) > 1)
    if sum(map(bool, found)) > 1:
        yield tuple(literal for literals in found for literal in literals)


def _counting(module: nn.Module, name: str, group: Group) -> tuple[Literal, ...]:
    """Return the integer attributes of a module that equal the number of units, or of their positions on some axis."""
    if type(module).__module__.startswith("torch.nn."):
        return ()  # their attributes follow their tensors
    units = group.num_units
    sizes = {units} | {units * len(piece.index[0]) for piece in group.slices}
    known = {(literal.module, literal.attribute) for literal in group.literals}
    return tuple(
        Literal(module=name, attribute=attribute, counts=(value // units,) * units)
        for attribute, value in vars(module).items()
        if type(value) is int and value in sizes and (name, attribute) not in known
    )


def _disagreeing(trial: Trial, working: dict[str, Group], names: dict[str, str]) -> list[str]:
    """Return the names of groups for which slicing is not masking, though the forward runs."""
    suspects = [group for name, group in working.items() if name in names]
    if not suspects or trial.agrees(suspects):
        return []
    return [group.name for group in suspects if not trial.agrees([group])]


def _outwards(module: str) -> Iterator[str]:
    """Yield a module's name, then the ones around it, up to the model itself."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _within(group: Group, module: str) -> frozenset[tuple[str, int]]:
    """Return the slices of a group inside a module, by their names there."""
    prefix = f"{module}."
    inside = [piece for piece in group.slices if piece.param.startswith(prefix)]
    return frozenset((piece.param.removeprefix(prefix), piece.dim) for piece in inside)
