"""Checks that groups, or the groups of a plan, are those of a model."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shortened, shown
from hessprune.foundation.tensors import named_tensors
from hessprune.structure.groups import Group, Slice


def check_groups(model: nn.Module, groups: Any, *, some: bool = False) -> tuple[Group, ...]:
    """Return groups as a tuple, after a check that all their slices lie in the tensors of a model.

    Args:
        model: Of which they are.
        groups: To be checked.
        some: Whether there must be one at least.

    Raises:
        ArgumentError: These are no groups, none, or those of another model.

    Example:
        >>> import torch, hessprune as hp
        >>> from hessprune.structure.belonging import check_groups
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> len(check_groups(net, hp.find_groups(net, torch.zeros(1, 4))))
        1
    """
    if not isinstance(groups, Sequence) or not all(isinstance(group, Group) for group in groups):
        raise ArgumentError(
            f"`groups` must be the groups of the model, got {shown(groups)}. "
            "Pass hp.find_groups(model, example_inputs)."
        )
    if some and not groups:
        raise ArgumentError(
            "`groups` must hold a group at least, got none. Pass hp.find_groups(model, example_inputs)."
        )
    problems = misfits(model, groups)
    if problems:
        raise ArgumentError(
            f"`groups` must be found on this model, but {shortened(problems, 2)}. "
            "Pass hp.find_groups(model, example_inputs)."
        )
    return tuple(groups)


def misfits(model: nn.Module, groups: Sequence[Group], shapes: Any = None) -> list[str]:
    """Return a description of every tensor that is missing, too small, or not of the size in `shapes`."""
    state = dict(named_tensors(model))
    problems = {}
    for piece in (piece for group in groups for piece in group.slices):
        problem = _misfit(state.get(piece.param), piece, (shapes or {}).get(piece.param))
        if problem:
            problems[f"{shown(piece.param)} {problem}"] = None
    return [*problems]


def _misfit(tensor: Tensor | None, piece: Slice, planned: tuple[int, ...] | None) -> str:
    """Return the difference between a tensor and a slice's idea of it; empty if there is none."""
    if tensor is None:
        return "is missing"
    shape, dim = tuple(tensor.shape), piece.dim
    highest = max(map(max, piece.index), default=0)
    if tensor.dim() <= dim or shape[dim] <= highest:
        return f"has shape {shape}, too small in dim {dim}"
    if planned is not None and len(planned) > dim and shape[dim] != planned[dim]:
        return f"has shape {shape}, and must have {planned[dim]} in dim {dim}"
    return ""
