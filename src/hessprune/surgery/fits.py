"""Checks that a plan, the model that it was made for, and the pruned model belong together."""

from collections.abc import Iterator

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.foundation.tensors import named_tensors
from hessprune.planning.chain import Step
from hessprune.planning.plan import Plan
from hessprune.structure.belonging import check_plan
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
