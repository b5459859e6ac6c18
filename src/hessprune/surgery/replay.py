"""Give a dense model the shapes that plans and widenings lead to, before saved weights are put in."""

import copy

from torch import nn

from hessprune.errors import CheckpointError
from hessprune.foundation.arrival import arrived
from hessprune.foundation.formatting import shown
from hessprune.foundation.tensors import named_tensors
from hessprune.planning.chain import Change, steps_of
from hessprune.planning.plan import Plan
from hessprune.planning.widening import Widening
from hessprune.structure.inserting import insert_copies
from hessprune.surgery.apply import apply_plan


def replay(dense: nn.Module, change: Change) -> nn.Module:
    """Return a model of the shapes that plans and widenings give; the weights of new units do not matter.

    Raises:
        CheckpointError: A step was made for another model.
    """
    model = dense
    for step in steps_of(change):
        model = apply_plan(model, step, check=False) if isinstance(step, Plan) else _replayed(model, step)
    return model


def _replayed(model: nn.Module, widening: Widening) -> nn.Module:
    """Return a copy with the new units of a widening."""
    model = arrived(model)
    state = dict(named_tensors(model))
    wrong = [name for name, shape in widening.shapes.items() if name not in state or state[name].shape != shape]
    if wrong:
        raise CheckpointError(
            f"the widening must be applied to the model that it was made for, but {shown(wrong[0])} differs "
            f"({len(wrong)} in all). Pass the model before it was widened, built by the same factory; where it was "
            "pruned before, save first.plan.then(this plan)."
        )
    wide = copy.deepcopy(model)
    insert_copies(wide, widening.groups, widening.added, widening.parents)
    return wide
