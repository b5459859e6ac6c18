"""Sizes of a group that reaches through many modules: follow the forward from failure to failure."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hessprune.foundation.written import counted_value, is_written
from hessprune.structure.groups import Group, Literal
from hessprune.structure.trial import Failure, Trial

MAX_STEPS = 24
"""Most kinds of modules, or attributes, in which a size is looked for."""


def mended(trial: Trial, beside: Sequence[Group], group: Group, choices: Sequence[Literal]) -> Iterator[Group]:
    """Yield the group with the attributes and sizes with which the model works, if any do.

    The module that fails gets one of the choices that lie in it or around it, and so do all modules of its class. The
    choice is good if the forward then works or fails in another module; the search goes on from there.

    Args:
        trial: Of the model.
        beside: Groups that lose units, too.
        group: Without the attributes.
        choices: What may count its units, or must be kept from falling with them.
    """
    for _ in range(MAX_STEPS):
        failure = trial.failure_of([*beside, group])
        if failure is None:
            yield group
            return
        further = (each for each in _tries(trial, group, failure, choices) if _is_further(trial, beside, each, failure))
        group = next(further, group)
        if failure == trial.failure_of([*beside, group]):
            return


def _tries(trial: Trial, group: Group, failure: Failure, choices: Sequence[Literal]) -> Iterator[Group]:
    """Yield the group with one choice more for the failing module, or for one around it, innermost first."""
    module = failure.module
    while True:
        for choice in choices:
            if choice.module == module and choice not in group.literals:
                likes = [each for each in choices if _is_like(trial, choice, each) and each not in group.literals]
                yield replace(group, literals=(*group.literals, *likes))
        if not module:
            return
        module = module.rpartition(".")[0]


def _is_like(trial: Trial, choice: Literal, other: Literal) -> bool:
    """Return whether two literals are the same attribute, with the same value, of modules of one class."""
    a, b = (trial.model.get_submodule(literal.module) for literal in (choice, other))
    if choice.attribute != other.attribute or type(a) is not type(b):
        return False
    return is_written(choice.attribute) or counted_value(a, choice.attribute) == counted_value(b, choice.attribute)


def _is_further(trial: Trial, beside: Sequence[Group], group: Group, failure: Failure) -> bool:
    """Return whether the forward works, or fails in another module."""
    now = trial.failure_of([*beside, group])
    return now is None or now.module != failure.module
