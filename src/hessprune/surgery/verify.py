"""Prove a pruned model on an example: slicing equals masking, and the predicted cost is the measured cost."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hessprune.costs.model import Cost, cost
from hessprune.errors import VerificationError
from hessprune.foundation.arrival import arrived
from hessprune.foundation.formatting import first_line, shown
from hessprune.foundation.modules import DEVICE_FAILURES, device_of
from hessprune.foundation.trees import to_device
from hessprune.layers.recording import record
from hessprune.planning.plan import Plan
from hessprune.structure.comparison import TOLERANCE, compare, outputs_of, positive
from hessprune.structure.masking import Followers
from hessprune.structure.outputs import has_numbers, is_finite_somewhere
from hessprune.surgery.fits import check_pair
from hessprune.surgery.implants.module import embed_stand_ins
from hessprune.surgery.slicing import mask_units


@torch.inference_mode(False)
def verify(dense: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any = None) -> float:
    """Compare a pruned model with its masked dense parent, both in evaluation mode.

    In the parent, removed units are set to zero, and implanted filters are replaced by full filters that are equal to
    their stand-ins.

    Cost: a copy of each model, and two forwards in float64.

    Args:
        dense: The model the plan was made for.
        pruned: The result of surgery.
        plan: The plan between them.
        example_inputs: Inputs to compare on; made from the plan's description if None.

    Returns:
        The largest difference of any number of the outputs, relative to the largest number of its tensor.

    Raises:
        ArgumentError: `plan` was made for another model than `dense`, or gives another one than `pruned`.
        VerificationError: Outputs differ, the pruned model does not run, or its cost is not the predicted one.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.zeros(1, 4)
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(params=0.5), example_inputs=x)
        >>> hp.verify(net, hp.apply_plan(net, plan), plan) < 1e-9
        True
    """
    dense, pruned = arrived(dense), arrived(pruned)
    check_pair(dense, pruned, plan)
    inputs = plan.inputs.example() if example_inputs is None else example_inputs
    difference, dtype = _compare(dense, pruned, plan, inputs)
    if not difference <= TOLERANCE[dtype]:
        output = outputs_of(copy.deepcopy(dense), inputs, dtype)
        if not is_finite_somewhere(output) and example_inputs is None:
            return verify(dense, pruned, plan, positive(inputs))
        _check_comparable(output)
        raise VerificationError(
            f"the pruned model must equal the masked dense model, but its output differs by {difference:.2e} "
            f"(relative, {dtype}). Its forward treats channels by position: pass the layers involved to "
            f"`find_groups(ignore=…)`."
        )
    counted = _counted(dense, pruned, plan, plan.inputs.like(inputs))
    if counted != plan.cost_after and not _runs_by_choice(pruned, inputs, counted, plan):
        raise VerificationError(
            f"the pruned model must cost what the plan predicts, {plan.cost_after!r}, got {shown(counted)}. "
            "Make the plan anew with hp.make_plan."
        )
    return difference


def _counted(dense: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any) -> Cost:
    """Return the cost of the pruned model, with the planned bytes where models were cast since the plan was made."""
    tensors = (*dense.parameters(), *dense.buffers())
    if is_cast := sum(each.numel() * each.element_size() for each in tensors) != plan.cost_before.bytes:
        dtype = next((each.dtype for each in tensors if each.is_floating_point()), None)
        inputs = to_device(inputs, device_of(pruned), dtype)
    counted = cost(pruned, inputs)
    if is_cast:
        return replace(counted, bytes=plan.cost_after.bytes, kv_cache=plan.cost_after.kv_cache)
    # Plans of earlier versions do not count the cache.
    return counted if plan.cost_before.kv_cache else replace(counted, kv_cache=0)


def _runs_by_choice(pruned: nn.Module, inputs: Any, counted: Cost, plan: Plan) -> bool:
    """Return whether operations differ alone, of a model whose experts take rows by what earlier layers say."""
    return replace(counted, macs=plan.cost_after.macs) == plan.cost_after and record(pruned, inputs).chooses


def _compare(dense: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any) -> tuple[float, torch.dtype]:
    """Return the relative difference and its precision."""
    try:
        return compare(lambda followers: _masked(dense, pruned, plan, followers), copy.deepcopy(pruned), inputs)
    except DEVICE_FAILURES:
        raise
    except Exception as error:  # the user's forward may raise anything
        raise VerificationError(
            f"the pruned model must run on the example inputs, but its forward failed: {first_line(error)}. A size is "
            f"fixed in its source code: pass the layers involved to `find_groups(ignore=…)`."
        ) from error


def _masked(dense: nn.Module, pruned: nn.Module, plan: Plan, followers: Followers) -> nn.Module:
    """Return the dense model with zeros for removed units and full filters for stand-ins."""
    masked = copy.deepcopy(dense)
    mask_units(masked, plan.groups, plan.removed, followers=followers)
    if plan.implanted:
        embed_stand_ins(masked.double(), pruned, plan)
    return masked


def _check_comparable(output: Any) -> None:
    """Raise unless the dense model's output holds numbers that prove something."""
    if not has_numbers(output):
        raise VerificationError(
            f"the dense model must return tensors with numbers, got {type(output).__name__} without any. Pass "
            "example_inputs with at least one sample, and let forward return its results."
        )
    if not is_finite_somewhere(output):
        raise VerificationError(
            "the dense model must give finite outputs, but they are not finite on these inputs. Pass example_inputs on "
            "which they are, such as a batch of the data."
        )
