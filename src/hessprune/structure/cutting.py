"""Cut units out of a model: delete slices of its tensors, and lower the attributes that count units."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hessprune.foundation.experts import let_experts_fit
from hessprune.foundation.multihead import free_heads
from hessprune.foundation.state import drop_caches
from hessprune.foundation.tensors import named_tensors, replace_tensors
from hessprune.foundation.written import lower
from hessprune.structure.groups import Literal, Slice

Cut = Slice | Literal


def remove_slices(model: nn.Module, cuts: Sequence[tuple[Cut, Sequence[int]]]) -> None:
    """Delete units from a model in place: `cuts` pairs each slice or literal with the units to remove.

    All positions refer to the model on entry. Shared parameters stay shared; dtype and `requires_grad` stay. The
    attributes of the owning modules follow.
    """
    removed: dict[tuple[str, int], list[int]] = {}
    for cut, units in cuts:
        if isinstance(cut, Literal):
            lower(model.get_submodule(cut.module), cut.attribute, sum(cut.counts[unit] for unit in units))
        else:
            removed.setdefault((cut.param, cut.dim), []).extend(p for unit in units for p in cut.index[unit])
    keep: dict[str, dict[int, Tensor]] = {}
    state = dict(named_tensors(model))
    for (name, dim), positions in removed.items():
        mask = torch.ones(state[name].shape[dim], dtype=torch.bool, device="cpu")
        mask[positions] = False
        keep.setdefault(name, {})[dim] = mask.nonzero().squeeze(1)
    free_heads(model, keep)
    replace_tensors(model, {name: _select(state[name], dims) for name, dims in keep.items()})
    let_experts_fit(model)
    drop_caches(model)


def _select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Return the positions of a tensor that stay, along several axes."""
    for dim, index in dims.items():
        tensor = tensor.detach().index_select(dim, index.to(tensor.device))
    return tensor.contiguous()
