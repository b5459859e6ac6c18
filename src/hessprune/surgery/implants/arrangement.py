"""The order of units in the pruned model: removed ones leave, implanted ones move behind the kept ones."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hessprune.foundation.tensors import replace_tensors
from hessprune.planning.plan import Plan

Axis = tuple[str, int]
"""A parameter or buffer, and one of its dimensions."""


def arrange_units(model: nn.Module, plan: Plan) -> None:
    """Permute the remaining units of every group with implants in a dense model, in place: kept before implanted."""
    state = _state(model)
    axes = {(p.param, p.dim) for g in plan.groups if plan.implanted.get(g.name) for p in g.slices}
    new: dict[str, Tensor] = {}
    for (name, dim), index in _permutations(plan, {axis: state[axis[0]].shape[axis[1]] for axis in axes}).items():
        tensor = new.get(name, state[name].detach())
        new[name] = tensor.index_select(dim, index.to(tensor.device))
    replace_tensors(model, new)


def origins(plan: Plan, sizes: Mapping[Axis, int]) -> dict[Axis, Tensor]:
    """Return for each axis of the pruned model the dense positions of its contents, as one vector.

    Args:
        plan: The decision.
        sizes: The axes, with their sizes in the dense model.
    """
    permutations = _permutations(plan, sizes)
    stays = {axis: torch.ones(size, dtype=torch.bool, device="cpu") for axis, size in sizes.items()}
    for group in plan.groups:
        units = plan.removed.get(group.name, ())
        for piece in group.slices if units else ():
            if (piece.param, piece.dim) in stays:
                stays[piece.param, piece.dim][piece.positions(units).reshape(-1)] = False
    return {axis: index[stays[axis]] for axis, index in permutations.items()}


def _permutations(plan: Plan, sizes: Mapping[Axis, int]) -> dict[Axis, Tensor]:
    """Return for each axis the vector `p`: position `k` receives the contents of dense position `p[k]`."""
    permutations = {axis: torch.arange(size, device="cpu") for axis, size in sizes.items()}
    for axis, slots, contents in _moves(plan):
        if axis in permutations:
            permutations[axis][slots] = contents
    return permutations


def _moves(plan: Plan) -> Iterator[tuple[Axis, Tensor, Tensor]]:
    kept = plan.kept
    for group in plan.groups:
        implanted = plan.implanted.get(group.name, ())
        order = (*kept[group.name], *implanted)
        for piece in group.slices if implanted else ():
            slots, contents = (piece.positions(units).reshape(-1) for units in (sorted(order), order))
            yield (piece.param, piece.dim), slots, contents


def _state(model: nn.Module) -> dict[str, Tensor]:
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {**buffers, **dict(model.named_parameters(remove_duplicate=False))}
