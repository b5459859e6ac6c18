"""Groups that a cache does not let go: a decoder may start the state that it keeps from sizes of its configuration."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.caches import may_cache
from hessprune.foundation.modules import call_with_cache, dry_run
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.quicksizes import KnownSizes, QuickSizes
from hessprune.structure.capture import first_line
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group
from hessprune.structure.halving import passing


def without_fixed_states(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group]
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those whose units may go from a forward that keeps its cache, and others with the reason.

    Costs one forward without numbers for a decoder, and a few more for each group that stays.
    """
    failure = partial(_failure, model, example_inputs)
    if not may_cache(model) or not failure(groups) or failure([]):  # without groups: it keeps no cache, whatever goes
        return [*groups], []
    working, stuck = passing(groups, failure)
    reason = "the state that the model keeps has the size of its configuration"
    return working, [(group, f"{reason} ({found})") for group, found in stuck]


def _failure(model: nn.Module, example_inputs: Any, removed: Sequence[Group]) -> str:
    """Return the error of a forward with its cache, without the first unit of each group; or nothing."""

    def called(empty: nn.Module, inputs: Any) -> None:
        free_heads(empty)
        remove_slices(empty, [(piece, [0]) for group in removed for piece in (*group.slices, *group.literals)])
        with plain_forwards(), KnownSizes(), QuickSizes():
            call_with_cache(empty, inputs)

    try:
        dry_run(model, example_inputs, called)
    except Exception as error:  # any error of the user's forward is the answer
        return first_line(error)
    return ""
