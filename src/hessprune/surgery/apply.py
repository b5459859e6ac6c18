"""Apply a plan: the result is a new, smaller model that trains, exports, copies and saves like any other."""

import copy
from collections.abc import Iterator
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.arrival import watched
from hessprune.foundation.checks import check_choice
from hessprune.foundation.formatting import shown
from hessprune.foundation.padding import ChannelPad
from hessprune.foundation.written import counted_value, is_written
from hessprune.planning.plan import Plan
from hessprune.structure.belonging import misfits
from hessprune.structure.groups import Literal
from hessprune.surgery.config import fit_config
from hessprune.surgery.fits import plan_remedy
from hessprune.surgery.implants.arrangement import arrange_units
from hessprune.surgery.implants.module import Start, insert_stand_ins
from hessprune.surgery.slicing import slice_units
from hessprune.surgery.verify import verify

COUNTING = ("groups", "num_groups", "num_heads", "num_features")
"""Attributes of torch's own layers that count units, the last one of norms without tensors; all others of them follow
the tensors."""


def apply_plan(
    model: nn.Module, plan: Plan, *, check: bool = True, example_inputs: Any = None, start: Start = "centre"
) -> nn.Module:
    """Return a copy of `model` without the plan's removed units, and with stand-ins for the implanted ones.

    The copy has the same classes and the same forward; its tensors and layer sizes are smaller. A layer that holds
    stand-ins becomes an `Implanted`: plain layers side by side. The argument is not changed. The copy is compared with
    the masked dense model on an example (two forwards in float64), and its cost with the predicted one.

    Args:
        model: The dense model that the plan was made for.
        plan: From `make_plan`, or read back with `Plan.from_json`.
        check: Whether to verify (*slicing equals masking*).
        example_inputs: Inputs to verify on; by default made from the shapes recorded in the plan.
        start: Weights of the stand-ins: the `"centre"` of their filters' kernels, or `"zero"`; `hp.prune` fits them to
            data.

    Returns:
        The pruned model, in the mode and on the device of `model`.

    Raises:
        ArgumentError: `plan` is no Plan, or one of units that its groups do not have.
        CheckpointError: The plan was made for another model.
        VerificationError: The pruned model does not compute what the masked model computes.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
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
    check_choice("start", start, ("centre", "zero"))
    with watched(model) as dense:
        pruned = without_units(dense, plan, start=start)
        if not any(plan.implanted.values()):
            left = {group.name: group.num_units - len(plan.removed[group.name]) for group in plan.groups}
            fit_config(pruned, plan.groups, left)
        if check:
            verify(dense, pruned, plan, example_inputs)
    return pruned


def without_units(dense: nn.Module, plan: Plan, *, start: Start = "centre") -> nn.Module:
    """Return the copy that `apply_plan` makes, not verified, and with the dense model's configuration.

    The remaining groups of the dense model are those of this copy. Where a new configuration says a size, they are not:
    a forward may read it there.
    """
    check_fits(dense, plan)
    pruned = copy.deepcopy(dense)
    arrange_units(pruned, plan)
    slice_units(pruned, plan.groups, plan.removed)
    insert_stand_ins(pruned, dense, plan, start=start)
    return pruned


def check_fits(model: nn.Module, plan: Plan) -> None:
    """Raise unless the dense model has every slice and every counting attribute of the plan.

    Raises:
        ArgumentError: This is no plan, or one of units that its groups do not have.
        CheckpointError: A tensor is missing or of another size, or a literal names no integer; all are listed.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"`plan` must be a Plan, got {shown(plan)}. {plan_remedy(plan)}")
    _check_units(plan)
    problems = dict.fromkeys(misfits(model, plan.groups, plan.shapes))
    problems |= dict.fromkeys(_wrong_literals(model, plan)) | dict.fromkeys(_wrong_carriers(model, plan))
    if problems:
        listed = "; ".join([*problems][:3])
        raise CheckpointError(
            f"the plan must be applied to the dense model that it was made for, but {listed} ({len(problems)} in all). "
            f"Pass the unpruned model, built by the same factory."
        )


def _check_units(plan: Plan) -> None:
    """Raise unless all units of a plan are those of its groups.

    Raises:
        ArgumentError: A group has no such unit.
    """
    sizes = {group.name: group.num_units for group in plan.groups}
    for field, units_of in (("removed", plan.removed), ("implanted", plan.implanted)):
        for name, units in units_of.items():
            wrong = [unit for unit in units if unit not in range(sizes.get(name, 0))]
            if wrong:
                raise ArgumentError(
                    f"`plan.{field}` must hold units of the plan's groups, got {shown(wrong[0])} in {shown(name)}, "
                    f"which has {sizes.get(name, 0)}. Number units from 0, or make the plan by hp.make_plan."
                )


def _wrong_carriers(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Yield the layers of stand-ins that are no convolution or linear layer of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in plan.stand_ins:
        if not isinstance(modules.get(name), nn.Linear | nn.modules.conv._ConvNd):
            yield f"{shown(name)} is no layer that can hold stand-ins"


def _wrong_literals(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Yield the attributes that no integer of the model answers to, or one that does not count units."""
    modules = dict(model.named_modules(remove_duplicate=False))
    totals: dict[tuple[str, str], int] = {}
    for item in (item for group in plan.groups for item in group.literals):
        key = item.module, item.attribute
        totals[key] = totals.get(key, 0) + sum(item.counts)
        module = modules.get(item.module)
        value = None if module is None else counted_value(module, item.attribute)
        if module is None or value is None or not _counts(module, item, value, totals[key]):
            yield f"{shown(f'{item.module}.{item.attribute}')} is no integer that counts its units"


def _counts(module: nn.Module, item: Literal, value: int, total: int) -> bool:
    """Return whether an attribute counts units: one of those that torch's layers and `ChannelPad` count with.

    So does a size that the forward writes down.

    Of other modules, any attribute may, if the units make up all of it: a stride or an axis does not.
    """
    if item.attribute in COUNTING or is_written(item.attribute) or isinstance(module, ChannelPad):
        return total <= value
    is_of_torch = type(module).__module__.startswith("torch.nn.")
    return not is_of_torch and sum(item.counts) == value and all(count > 0 for count in item.counts)
