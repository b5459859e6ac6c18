"""Sizes that the source code fixes: groups that fail on trial, and module attributes that free them."""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hessprune.foundation.modules import split_name
from hessprune.foundation.written import is_written
from hessprune.structure.groups import Group, Literal
from hessprune.structure.halving import passing
from hessprune.structure.mending import mended
from hessprune.structure.trial import Failure, Rerun, Trial


def without_failures(
    model: nn.Module,
    example_inputs: Any,
    groups: Sequence[Group],
    written: Mapping[str, tuple[Literal, ...]] | None = None,
    *,
    compare: bool = False,
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those with removable units and those that the forward treats in another way, with the reason.

    Where an integer attribute of a module (`num_heads`, `width`) holds a size, the attribute becomes a literal of the
    group and shrinks with it; where none does, the sizes in `written`, by the group's name, do. At the end some units
    of these groups, or with `compare` of all, are sliced off one copy of the model and masked in another, and the
    outputs must agree. Costs one forward without numbers if nothing fails, two with numbers to compare, and a few more
    for each class of modules that fails and each group that disagrees.
    """
    trial = Trial(model, example_inputs)
    sized = {group.name: _sized(group, (written or {}).get(group.name, ())) for group in groups}
    working, reasons = {group.name: group for group in groups}, {}
    freed: dict[str, str] = {}
    added: set[tuple[str, ...]] = set()
    while working and (failure := trial.failure([*working.values()])):
        reason = f"the source code fixes its size ({failure.message})"
        beside, culprits = _culprits(trial, [*working.values()], failure)
        calls = trial.calls({module for group, module in culprits if _lies_in(group, module)})
        for group, module in culprits:
            if group.name not in working:  # it lies in several modules of a class
                continue
            choices = _as_before(_choices(model, group, module, sized[group.name]), group, added)
            choices = [sized[group.name]] if group.name in freed else choices
            call = calls.get(module) if _lies_in(group, module) else None
            if group.kind == "embedding" and group.name not in freed:
                followed = mended(trial, beside, group, _all_choices(model, sized[group.name]))
                choices = itertools.chain(followed, [sized[group.name]])
            better = _working(trial, beside, choices, call=call)
            if better and better != group:
                added.add(_attributes(group, better))
                working[group.name], freed[group.name] = better, reason
            else:
                reasons[group.name] = reason
                del working[group.name]
    for name, better in _silent(trial, working, sized):
        working[name], freed[name] = better, "its number is fixed in the source code"
    suspects = [group for name, group in working.items() if compare or name in freed]
    agreeing, disagreeing = _agreeing(trial, suspects, sized)
    reasons |= disagreeing | {name: freed[name] for name in disagreeing if name in freed}
    working |= {group.name: group for group in agreeing}
    kept = [group for name, group in working.items() if name not in disagreeing]
    return kept, [(group, reasons[group.name]) for group in groups if group.name in reasons]


def _sized(group: Group, sizes: Sequence[Literal]) -> Group:
    """Return a group with the sizes that forwards may have written down."""
    return replace(group, literals=tuple(dict.fromkeys((*group.literals, *sizes))))


def _silent(trial: Trial, working: Mapping[str, Group], sized: Mapping[str, Group]) -> Iterator[tuple[str, Group]]:
    """Yield groups whose size the forward names and yet runs without some units: with other heads, or other channels.

    Each gets attributes after which no call names a written size, or else the sizes that are named.
    """
    heads = {name: group for name, group in working.items() if group.kind != "embedding"}
    everything = {name: _sized(group, sized[name].literals) for name, group in heads.items()}
    named = trial.named_sizes([*{**working, **everything}.values()])
    homes = {
        name: _home(sized[name]) for name, group in heads.items() if _names(trial, _more(group, sized[name]), named)
    }
    calls = trial.calls({*homes.values()} - {""})
    for name in homes:
        better, beside = sized[name], [other for key, other in working.items() if key != name]
        for choice in _choices(trial.model, working[name], "", working[name]):
            is_inside = all(_is_in(literal.module, homes[name]) for literal in choice.literals)
            call = calls.get(homes[name]) if is_inside else None
            around, both = () if call else beside, _sized(choice, sized[name].literals)
            if trial.failure_of([*around, choice], call):
                continue
            if not _names(trial, both, trial.named_sizes([*around, both], call)):
                better = choice
                break
        call = calls.get(homes[name]) if better is sized[name] else None
        yield name, _named(trial, better, () if call else beside, call)


def _more(group: Group, sized: Group) -> Group:
    """Return the group with those sizes alone that it does not hold yet."""
    return replace(group, literals=tuple(item for item in sized.literals if item not in group.literals))


def _home(group: Group) -> str:
    """Return the innermost module that holds all slices and literals of a group."""
    names = [*(split_name(piece.param)[0] for piece in group.slices), *(literal.module for literal in group.literals)]
    return next(outer for outer in _outwards(names[0]) if all(_is_in(name, outer) for name in names))


def _is_in(module: str, outer: str) -> bool:
    return not outer or f"{module}.".startswith(f"{outer}.")


def _names(trial: Trial, group: Group, named: Collection[tuple[int, str]]) -> bool:
    """Return whether a call named one of the written sizes of a group."""
    return any((id(trial.model.get_submodule(item.module)), item.attribute) in named for item in group.literals)


def _culprits(trial: Trial, groups: Sequence[Group], failure: Failure) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Find groups that make the forward fail, each with its failing module, and groups that work beside the first.

    Suspect the groups inside the failing module first. If the culprit lies as a whole in one module, other modules of
    the same class may have such a group, too; try each of them alone.
    """
    inside = [group for group in groups if _within(group, failure.module)] if failure.module else []
    others = [group for group in groups if not _within(group, failure.module)]
    if not inside or trial.failure(others):
        inside, others = list(groups), []
    low, high = 0, len(inside)  # inside[:low] works beside the others, inside[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.failure([*others, *inside[:middle]]) else (middle, high)
    first = inside[low]
    whole = (name for name in _outwards(failure.module) if len(_within(first, name)) == len(first.slices))
    module = next(whole, failure.module)
    return [*others, *inside[:low]], [(first, module), *_likewise(trial, groups, first, module)]


def _likewise(trial: Trial, groups: Sequence[Group], culprit: Group, module: str) -> Iterator[tuple[Group, str]]:
    """Yield the groups that fail as the culprit does, in other modules of the same class."""
    within, owner = _within(culprit, module), trial.model.get_submodule(module)
    if len(within) == len(culprit.slices):  # else it reaches out of the module, and a call of the module proves nothing
        names = {name for name, other in trial.model.named_modules() if type(other) is type(owner) and name != module}
        for name, call in trial.calls(names).items():
            for group in groups:
                if _within(group, name) == within and trial.failure_of([group], call):
                    yield group, name


def _attributes(group: Group, better: Group) -> tuple[str, ...]:
    """Return the names of the attributes that a group got, without those of the modules that hold them."""
    return tuple(item.attribute for item in _more(group, better).literals)


def _as_before(choices: Iterable[Group], group: Group, added: Collection[tuple[str, ...]]) -> list[Group]:
    """Return choices for a group, those first that helped another one: layers of a class are mostly alike."""
    return sorted(choices, key=lambda choice: _attributes(group, choice) not in added)


def _lies_in(group: Group, module: str) -> bool:
    """Return whether all slices of a group lie in a module."""
    return len(_within(group, module)) == len(group.slices)


def _working(trial: Trial, beside: Sequence[Group], choices: Iterable[Group], call: Rerun | None) -> Group | None:
    """Return the first of some choices for a group with which a call, or the whole model, works; or None."""
    around = () if call else beside
    failures = ((better, trial.failure_of([*around, better], call)) for better in choices)
    better = next((better for better, failure in failures if not failure), None)
    return better and _named(trial, better, around, call)


def _named(trial: Trial, group: Group, beside: Sequence[Group], call: Rerun | None = None) -> Group:
    """Return a group that works without the written sizes that no call names: those follow by themselves."""
    if not any(is_written(literal.attribute) for literal in group.literals):
        return group
    named = trial.named_sizes([*beside, group], call)
    keys = [(id(trial.model.get_submodule(literal.module)), literal.attribute) for literal in group.literals]
    pairs = zip(group.literals, keys, strict=True)
    literals = tuple(item for item, key in pairs if key in named or not is_written(item.attribute))
    return replace(group, literals=literals)


def _all_choices(model: nn.Module, sized: Group) -> list[Literal]:
    """Return all attributes that may count the units of a group, and all sizes that stay or go with them."""
    owners = (split_name(piece.param)[0] for piece in sized.slices)
    around = dict.fromkeys(outer for name in owners for outer in _outwards(name))
    counting = (literal for name in around for literal in _counting(model.get_submodule(name), name, sized))
    return [*counting, *sized.literals]


def _choices(model: nn.Module, group: Group, module: str, sized: Group) -> Iterator[Group]:
    """Yield the group with attributes that may count its units, the fewest and innermost first, then with all sizes.

    Attributes come one by one, two or all of one module, and all of all modules; at last, each of these with all sizes.
    """
    names = [module, *(split_name(piece.param)[0] for piece in group.slices)]
    around = dict.fromkeys(outer for name in names for outer in _outwards(name))
    by_module = [_counting(model.get_submodule(name), name, group) for name in around]
    sets: list[tuple[Literal, ...]] = [(literal,) for literals in by_module for literal in literals]
    sets += [pair for literals in by_module if len(literals) > 2 for pair in itertools.combinations(literals, 2)]
    sets += [literals for literals in by_module if len(literals) > 1]
    if sum(map(bool, by_module)) > 1:
        sets.append(tuple(literal for literals in by_module for literal in literals))
    yield from (replace(group, literals=(*group.literals, *literals)) for literals in sets)
    if len(sized.literals) > len(group.literals):
        yield from (_sized(sized, literals) for literals in ((), *sets))


def _counting(module: nn.Module, name: str, group: Group) -> tuple[Literal, ...]:
    """Return the integer attributes of a module that equal the number of units, or of their positions on some axis."""
    if type(module).__module__.startswith(("torch.nn.", "hessprune.")):
        return ()  # their attributes follow their tensors
    units = group.num_units
    sizes = {units} | {units * len(piece.index[0]) for piece in group.slices}
    counted = {(literal.module, literal.attribute) for literal in group.literals}
    return tuple(
        Literal(module=name, attribute=attribute, counts=(value // units,) * units)
        for attribute, value in vars(module).items()
        if type(value) is int and value in sizes and (name, attribute) not in counted
    )


def _agreeing(trial: Trial, groups: Sequence[Group], sized: Mapping[str, Group]) -> tuple[list[Group], dict[str, str]]:
    """Split groups into those for which slicing is masking and others, by name with the reason.

    A group that disagrees alone gets attributes or sizes that count its units, if that helps.
    """
    if not groups or not trial.disagreement(groups) or not trial.can_compare():
        return [*groups], {}

    def mend(group: Group, beside: Sequence[Group]) -> Group | None:
        return _agreeing_alone(trial, group, beside, sized[group.name])

    agreeing, others = passing(groups, trial.disagreement, mend)
    reason = "the forward depends on the number or the places of its channels"
    return agreeing, {group.name: f"{reason} ({found})" for group, found in others}


def _agreeing_alone(trial: Trial, group: Group, beside: Sequence[Group], sized: Group) -> Group | None:
    """Return the group with attributes or sizes for which slicing is masking, or None."""
    for better in _choices(trial.model, group, "", sized):
        if not trial.failure_of([*beside, better]) and not trial.disagreement([*beside, better]):
            return _named(trial, better, beside)
    return None


def _outwards(module: str) -> Iterator[str]:
    """Yield the name of a module, then the names of the modules around it, up to the model itself."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _within(group: Group, module: str) -> frozenset[tuple[str, int]]:
    """Return the slices of a group inside a module, by their names there."""
    prefix = f"{module}."
    inside = [piece for piece in group.slices if piece.param.startswith(prefix)]
    return frozenset((piece.param.removeprefix(prefix), piece.dim) for piece in inside)
