"""Groups that a cache does not let go: a decoder may start the state that it keeps from sizes of its configuration."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.caches import may_cache
from hessprune.foundation.formatting import first_line
from hessprune.foundation.modules import call_with_cache, dry_run
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.quicksizes import KnownSizes, QuickSizes
from hessprune.foundation.texts import has_decoder
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group
from hessprune.structure.halving import passing

STATE = ("cache", "past_key_values", "cache_params", "state")
"""Names of the cache among outputs, and of the argument that takes it up."""


def without_fixed_states(
    model: nn.Module, example_inputs: Any, groups: Sequence[Group]
) -> tuple[list[Group], list[tuple[Group, str]]]:
    """Split groups into those whose units may go from a forward that keeps its cache, and others with the reason.

    A text model also reads one word more from its cache: the step of a state may be written apart, with sizes of its
    own. Costs these forwards without numbers for a decoder, and a few more for each group that stays.
    """
    if not may_cache(model):
        return [*groups], []
    for steps in (True, False):
        failure = partial(_failure, model, example_inputs, steps)
        if not failure(groups):
            return [*groups], []
        if not failure([]):  # else it keeps no cache that can be read like this, whatever goes
            working, stuck = passing(groups, failure)
            reason = "the state that the model keeps has the size of its configuration"
            return working, [(group, f"{reason} ({found})") for group, found in stuck]
    return [*groups], []


def _failure(model: nn.Module, example_inputs: Any, steps: bool, removed: Sequence[Group]) -> str:
    """Return the error of a forward with its cache, and of one step from it, without one unit of each group."""

    def called(empty: nn.Module, inputs: Any) -> None:
        free_heads(empty)
        remove_slices(empty, [(piece, [0]) for group in removed for piece in (*group.slices, *group.literals)])
        with plain_forwards(), KnownSizes(), QuickSizes():
            output = call_with_cache(empty, inputs)
            if steps and (following := _following(inputs, output)):
                call_with_cache(empty, following)

    try:
        dry_run(model, example_inputs, called)
    except Exception as error:  # any error of the user's forward is the answer
        return first_line(error)
    return ""


def _following(inputs: Any, output: Any) -> dict[str, Any]:
    """Return the inputs of one word more, or nothing for other models than those of texts."""
    kept = next((name for name in STATE if isinstance(output, Mapping) and output.get(name) is not None), None)
    words = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
    if kept is None or words is None or has_decoder(inputs):
        return {}
    return {"input_ids": words[:, -1:], kept: output[kept], "use_cache": True}
