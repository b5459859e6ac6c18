"""Two ways to take units out: delete their slices, or set them to zero. Both give the same function."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from hessprune.foundation.state import drop_caches
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group, Literal, Slice


def slice_units(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> None:
    """Delete the removed units' slices from a dense model, in place; sizes of the layers follow."""
    remove_slices(model, list(_cuts(groups, removed)))


def mask_units(
    model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]], *, followers: bool = True
) -> None:
    """Set every slice of the removed units to zero, in place; the model keeps its shape.

    Consumers multiply the unit by zero, so this is exact also for activations with f(0) ≠ 0.

    Args:
        model: The dense model.
        groups: Its groups.
        removed: Units by group name.
        followers: Whether biases, normalisation and stored deviations become zero, too; they must not where the model
            divides by one of them.
    """
    state = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    with torch.no_grad():
        for piece, units in _cuts(groups, removed):
            if isinstance(piece, Slice) and units and (followers or piece.role != "follower"):
                tensor = state[piece.param]
                tensor.index_fill_(piece.dim, piece.positions(units).reshape(-1).to(tensor.device), 0)
    drop_caches(model)


def _cuts(
    groups: Sequence[Group], removed: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Slice | Literal, Sequence[int]]]:
    for group in groups:
        units = removed.get(group.name, ())
        for piece in (*group.slices, *group.literals) if units else ():
            yield piece, units
