"""Prove a pruned model on an example: slicing equals masking, and the predicted cost is the measured cost."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hessprune.costs.model import cost
from hessprune.errors import VerificationError
from hessprune.foundation.formatting import shown
from hessprune.foundation.modules import call_model, device_of
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import tensors_in, to_device
from hessprune.planning.plan import Plan
from hessprune.surgery.fits import check_pair
from hessprune.surgery.implants.module import embed_stand_ins
from hessprune.surgery.slicing import mask_units

# Largest accepted difference, relative to the largest output. Both models run in float64 where the model allows it;
# the order of summation remains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def verify(dense: nn.Module, pruned: nn.Module, plan: Plan, example_inputs: Any = None) -> float:
    """Compare a pruned model with its masked dense parent, both in evaluation mode.

    In the parent, removed units are set to zero, and implanted filters are replaced by full filters that are equal to
    their stand-ins.

    Args:
        dense: The model the plan was made for.
        pruned: The result of surgery.
        plan: The plan between them.
        example_inputs: Inputs to compare on; made from the plan's description if None.

    Returns:
        The largest absolute difference of any output, relative to the largest output.

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
    check_pair(dense, pruned, plan)
    inputs = plan.inputs.example() if example_inputs is None else example_inputs
    difference, dtype = _compare(_masked(dense, pruned, plan), copy.deepcopy(pruned), inputs)
    if not math.isfinite(difference):  # zero may stand in a divisor, such as a stored deviation
        difference, dtype = _compare(_masked(dense, pruned, plan, followers=False), copy.deepcopy(pruned), inputs)
    if difference == math.inf and not _is_finite(dense, inputs):
        if example_inputs is None:  # the model may take positive inputs alone, as a logarithm does
            return verify(dense, pruned, plan, tree_map(_positive, inputs))
        raise VerificationError(
            "the dense model must give finite outputs, but they are not finite on these inputs. Pass example_inputs on "
            "which they are, such as a batch of the data."
        )
    if not difference <= TOLERANCE[dtype]:
        raise VerificationError(
            f"the pruned model must equal the masked dense model, but its output differs by {difference:.2e} "
            f"(relative, {dtype}). Its forward treats channels by position: pass the layers involved to "
            f"`find_groups(ignore=…)`."
        )
    counted = cost(pruned, _as_planned(plan, inputs))
    if counted != plan.cost_after:
        raise VerificationError(
            f"the pruned model must cost what the plan predicts, {plan.cost_after!r}, got {shown(counted)}. "
            "Make the plan anew with hp.make_plan."
        )
    return difference


def _as_planned(plan: Plan, inputs: Any) -> Any:
    """Return inputs of the shapes for which the plan counted: the same ones where they have these shapes."""
    planned = plan.inputs.example()
    same = [tensor.shape for tensor in tensors_in(planned)] == [tensor.shape for tensor in tensors_in(inputs)]
    return inputs if same else planned


def _masked(dense: nn.Module, pruned: nn.Module, plan: Plan, *, followers: bool = True) -> nn.Module:
    """Return the dense model with zeros for removed units and full filters for stand-ins."""
    masked = copy.deepcopy(dense)
    mask_units(masked, plan.groups, plan.removed, followers=followers)
    if plan.implanted:
        embed_stand_ins(masked.double(), pruned, plan)
    return masked


def _compare(masked: nn.Module, pruned: nn.Module, inputs: Any) -> tuple[float, torch.dtype]:
    """Return the relative difference and its precision: float64 where the forward allows it."""
    inputs = to_device(inputs, device_of(masked))
    expected = _try(masked.double(), to_device(inputs, device_of(masked), torch.float64))
    if expected is not None:
        actual = _run(pruned.double(), to_device(inputs, device_of(pruned), torch.float64))
        return _difference(expected, actual), torch.float64
    return _difference(_run(masked.float(), inputs), _run(pruned.float(), inputs)), torch.float32


def _is_finite(model: nn.Module, inputs: Any) -> bool:
    outputs = _run(model, to_device(inputs, device_of(model)))
    return any(bool(torch.isfinite(tensor).any()) for tensor in outputs)


def _positive(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _try(model: nn.Module, inputs: Any) -> list[Tensor] | None:
    """Run the model, or return None where it insists on its own precision."""
    try:
        return _run(model, inputs)
    except VerificationError:
        return None


def _run(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad(), evaluation_mode(model):
        try:
            return list(_floats(call_model(model, inputs)))
        except Exception as error:
            raise VerificationError(
                f"the pruned model must run on the example inputs, but its forward failed: {error}. A size is "
                f"fixed in its source code: pass the layers involved to `find_groups(ignore=…)`."
            ) from error


def _floats(output: Any) -> Iterator[Tensor]:
    tree = output if isinstance(output, Tensor | dict | tuple | list) else vars(output)
    yield from (tensor.detach() for tensor in tensors_in(tree) if tensor.is_floating_point())


def _difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Return the largest difference relative to the largest output; infinity where outputs cannot be compared."""
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return float("inf")
    a, b = (torch.cat([torch.zeros(0), *(tensor.flatten().cpu() for tensor in side)]) for side in (expected, actual))
    finite = torch.isfinite(a)
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or (a.numel() and not finite.any()):
        return float("inf")
    return _largest((a - b)[finite]) / max(_largest(a[finite]), 1e-6)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
