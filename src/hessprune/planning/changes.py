"""Read whatever stands between a dense model and a saved one: a plan, a widening, or several of them."""

import json

from hessprune.planning.chain import Chain, Change, steps_of
from hessprune.planning.packing import require
from hessprune.planning.plan import Plan
from hessprune.planning.reading import parsed
from hessprune.planning.widening import Widening


def change_from_json(text: str) -> Change:
    """Read a plan, a widening or a chain of them.

    Raises:
        CheckpointError: The text is truncated, or holds impossible values.
    """
    data = parsed(text)
    kind = data.get("kind")
    if kind == "chain":
        steps = data.get("steps") or ()
        require(isinstance(steps, list), "a chain without steps")
        nested = [step for step in steps if not isinstance(step, dict) or step.get("kind") == "chain"]
        require(not nested, "a chain within a chain")
        return Chain(steps=tuple(part for step in steps for part in steps_of(change_from_json(json.dumps(step)))))
    return Widening.from_json(text) if kind == "widening" else Plan.from_json(text)
