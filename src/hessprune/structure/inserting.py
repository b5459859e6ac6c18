"""Put units into a model: lengthen its tensors by copies of other units, and raise the attributes that count units."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hessprune.foundation.experts import let_experts_fit
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.state import drop_caches
from hessprune.foundation.tensors import named_tensors, replace_tensors
from hessprune.foundation.written import lower
from hessprune.structure.enlarging import Axis
from hessprune.structure.groups import Group


def insert_copies(
    model: nn.Module,
    groups: Sequence[Group],
    added: Mapping[str, Sequence[int]],
    parents: Mapping[str, Sequence[int]],
) -> None:
    """Lengthen a model in place, so that it has all units of `groups`; each added one is a copy of its parent.

    Args:
        model: The model before, without the added units.
        groups: The groups of the model afterwards.
        added: New units by group name.
        parents: The unit that each of them copies, by the numbers in `groups`.
    """
    state, sources = dict(named_tensors(model)), _sources(groups, added, parents)
    wide = {}
    for name, axes in sources.items():
        tensor = state[name].detach()
        for dim, copied in axes.items():
            tensor = tensor.index_select(dim, _source(tensor.shape[dim], copied).to(tensor.device))
        wide[name] = tensor.contiguous()
    free_heads(model, wide)
    replace_tensors(model, wide)
    for group in groups:
        for item in group.literals:
            more = sum(item.counts[unit] for unit in added.get(group.name, ()))
            lower(model.get_submodule(item.module), item.attribute, -more)
    let_experts_fit(model)
    drop_caches(model)


def _sources(
    groups: Sequence[Group], added: Mapping[str, Sequence[int]], parents: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, dict[int, int]]]:
    """Return for each axis the new positions, each with the one that it copies."""
    sources: dict[str, dict[int, dict[int, int]]] = {}
    for group in groups:
        for piece in group.slices if added.get(group.name) else ():
            copied = sources.setdefault(piece.param, {}).setdefault(piece.dim, {})
            for unit, parent in zip(added[group.name], parents[group.name], strict=True):
                copied.update(zip(piece.index[unit], piece.index[parent], strict=True))
    return sources


def _source(size: int, copied: Mapping[int, int]) -> Tensor:
    """Return for every position of a lengthened axis the old position whose values it takes."""
    before, old = {}, 0
    for position in range(size + len(copied)):
        if position not in copied:
            before[position], old = old, old + 1
    return torch.tensor(
        [before[copied.get(position, position)] for position in range(size + len(copied))], device="cpu"
    )


def axes_of(groups: Sequence[Group], model: nn.Module) -> dict[Axis, int]:
    """Return the size of every axis that a group has slices of."""
    state = dict(named_tensors(model))
    return {(p.param, p.dim): state[p.param].shape[p.dim] for group in groups for p in group.slices}
