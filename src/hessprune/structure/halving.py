"""Find the groups that fail a trial, which takes several groups at once: halve only what fails."""

from collections.abc import Callable, Sequence

from hessprune.structure.groups import Group

Failure = Callable[[Sequence[Group]], str]
"""Returns why a trial of some groups together fails, or nothing."""


def _no_mend(group: Group, beside: Sequence[Group]) -> Group | None:  # noqa: ARG001 - the form of others
    return None


def passing(
    groups: Sequence[Group], failure: Failure, mend: Callable[[Group, Sequence[Group]], Group | None] = _no_mend
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those that pass a trial together, and others with the reason.

    Costs one trial if all pass, and about `2 log₂ U` more for each of the others among `U` groups.

    Args:
        groups: To be tried.
        failure: The trial.
        mend: Returns another form of a group that fails alone, one that passes beside the others, or None.

    Example:
        >>> from types import SimpleNamespace
        >>> from hessprune.structure.halving import passing
        >>> groups = [SimpleNamespace(name=name) for name in "abcd"]
        >>> works, fails = passing(groups, lambda some: "c fails" * any(group.name == "c" for group in some))
        >>> [group.name for group in works], [(group.name, reason) for group, reason in fails]
        (['a', 'b', 'd'], [('c', 'c fails')])
    """
    working: list[Group] = []
    failing: list[tuple[Group, str]] = []

    def add(part: Sequence[Group]) -> None:
        found = failure([*working, *part])
        if not found:
            working.extend(part)
        elif len(part) > 1:
            middle = len(part) // 2
            add(part[:middle])
            add(part[middle:])
        elif (better := mend(part[0], working)) is not None:
            working.append(better)
        else:
            failing.append((part[0], found))

    if groups:
        add(groups)
    return working, failing
