"""Apply a plan: a new, smaller model that trains, exports, copies and saves like any other."""

import copy
from typing import Any

from torch import nn

from hessprune.errors import CheckpointError
from hessprune.planning.plan import Plan
from hessprune.surgery.arrangement import arrange_units
from hessprune.surgery.implants.module import Start, insert_stand_ins
from hessprune.surgery.slicing import slice_units
from hessprune.surgery.verify import verify


def apply_plan(
    model: nn.Module, plan: Plan, *, check: bool = True, example_inputs: Any = None, start: Start = "centre"
) -> nn.Module:
    """Return a copy of `model` without the plan's removed units, and with stand-ins for the implanted ones.

    The copy has the same classes and the same forward; its tensors and layer sizes are smaller. A layer that holds
    stand-ins becomes an `Implanted`: plain layers side by side. The argument is not changed. Before it is returned, the
    copy is compared with the masked dense model on an example (two forwards in float64) and its cost with the predicted
    one.

    Args:
        model: The dense model that the plan was made for.
        plan: From `make_plan`, or read back with `Plan.from_json`.
        check: Whether to verify (*slicing equals masking*).
        example_inputs: Inputs to verify on; by default made from the shapes recorded in the plan.
        start: Weights of the stand-ins: the `"centre"` of their filters' kernels, or `"zero"`; `fit_stand_ins` does
            better.

    Returns:
        The pruned model, in the mode and on the device of `model`.

    Raises:
        CheckpointError: The plan was made for another model.
        VerificationError: The pruned model does not compute what the masked model computes.

    Example:
        >>> import torch, hessprune as hp
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> groups = hp.find_groups(net, torch.zeros(1, 4))
        >>> saliency = {group.name: torch.arange(8.0) for group in groups}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(params=0.5), example_inputs=torch.zeros(1, 4))
        >>> hp.apply_plan(net, plan)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    check_fits(model, plan)
    pruned = copy.deepcopy(model)
    arrange_units(pruned, plan)
    slice_units(pruned, plan.groups, plan.removed)
    insert_stand_ins(pruned, model, plan, start=start)
    for parameter in pruned.parameters():
        parameter.grad = None
    if check:
        verify(model, pruned, plan, example_inputs)
    return pruned


def check_fits(model: nn.Module, plan: Plan) -> None:
    """Raise unless every slice of the plan exists in the dense model.

    Raises:
        CheckpointError: A parameter is missing or of another size; all of them are listed.
    """
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    problems = {}
    for piece in (piece for group in plan.groups for piece in group.slices):
        tensor, highest = state.get(piece.param), max(max(row) for row in piece.index)
        if tensor is None:
            problems[piece.param] = "is missing"
        elif tensor.dim() <= piece.dim or tensor.shape[piece.dim] <= highest:
            problems[piece.param] = f"has shape {tuple(tensor.shape)}, too small in dim {piece.dim}"
    if problems:
        listed = "; ".join(f"'{name}' {what}" for name, what in list(problems.items())[:5])
        raise CheckpointError(
            f"the plan must be applied to the dense model that it was made for, but {listed} ({len(problems)} in all). "
            f"Pass the unpruned model, built by the same factory."
        )
