"""Checks that a plan, the model that it was made for, and the pruned model belong together."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shortened, shown
from hessprune.foundation.tensors import named_tensors
from hessprune.planning.chain import Chain, Step
from hessprune.planning.plan import Plan
from hessprune.planning.widening import Widening
from hessprune.structure.belonging import misfits
from hessprune.surgery.implants.module import whole_shapes

Shape = tuple[int, ...]


def check_pair(dense: nn.Module, pruned: nn.Module, plan: Plan) -> None:
    """Raise unless a plan was made for `dense`, and gives the shapes of `pruned`.

    Raises:
        ArgumentError: The plan, or the pruned model, belongs to another model.
    """
    check_plan(dense, plan, "dense")
    for name, planned, shape in misshapen(pruned, plan):
        if shape is not None:
            raise ArgumentError(
                f"`pruned` must have the shapes that `plan` gives, but {shown(name)} must be {planned}, got {shape}. "
                "Pass the result of hp.apply_plan(dense, plan), fine-tuned or not."
            )


def check_plan(model: nn.Module, plan: Any, name: str = "model") -> None:
    """Raise unless a plan was made for a model of these shapes.

    Raises:
        ArgumentError: This is no plan, or that of another model.
    """
    if not isinstance(plan, Plan):
        raise ArgumentError(f"`plan` must be a Plan, got {shown(plan)}. {plan_remedy(plan)}")
    problems = misfits(model, plan.groups, plan.shapes)
    if problems:
        raise ArgumentError(
            f"`plan` must be made for `{name}`, but {shortened(problems, 2)}. Pass the model that it was made for."
        )


def plan_remedy(value: Any) -> str:
    """Return the remedy for something else in the place of a plan."""
    if isinstance(value, Chain):
        return (
            "Take its `steps` in turn: hp.apply_plan for a Plan, hp.widen(model, example_inputs, step.widths) for a "
            "Widening."
        )
    if isinstance(value, Widening):
        return "Repeat it by hp.widen(model, example_inputs, widening.widths)."
    return "Pass the result of hp.make_plan."


def misshapen(model: nn.Module, plan: Step) -> Iterator[tuple[str, Shape, Shape | None]]:
    """Yield name, planned shape and shape of each tensor that differs on an axis which the plan has slices of.

    The shape of a missing tensor is None.
    """
    shapes = {
        **whole_shapes(model, plan.stand_ins),
        **{name: tuple(value.shape) for name, value in named_tensors(model)},
    }
    axes: dict[str, set[int]] = {}
    for piece in (piece for group in plan.groups for piece in group.slices):
        axes.setdefault(piece.param, set()).add(piece.dim)
    for name, planned in plan.shapes_after.items():
        shape = shapes.get(name)
        if shape is None or any(dim >= len(shape) or shape[dim] != planned[dim] for dim in axes.get(name, ())):
            yield name, planned, shape
