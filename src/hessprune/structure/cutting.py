"""Units cut out of a model: slices of its tensors are deleted, the attributes that count them follow."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hessprune.foundation.state import drop_caches
from hessprune.foundation.tensors import named_tensors, replace_tensors
from hessprune.structure.groups import Literal, Slice

Cut = Slice | Literal


def remove_slices(model: nn.Module, cuts: Sequence[tuple[Cut, Sequence[int]]]) -> None:
    """Delete units from a model in place: `cuts` pairs each slice (or literal) with the units to remove.

    All positions refer to the model as it is on entry. Parameters keep their identity across aliases, their dtype and
    their `requires_grad`; the attributes of the owning modules follow.
    """
    doomed: dict[tuple[str, int], list[int]] = {}
    for cut, units in cuts:
        if isinstance(cut, Literal):
            module = model.get_submodule(cut.module)
            setattr(module, cut.attribute, getattr(module, cut.attribute) - sum(cut.counts[unit] for unit in units))
        else:
            doomed.setdefault((cut.param, cut.dim), []).extend(p for unit in units for p in cut.index[unit])
    keep: dict[str, dict[int, Tensor]] = {}
    state = dict(named_tensors(model))
    for (name, dim), positions in doomed.items():
        mask = torch.ones(state[name].shape[dim], dtype=torch.bool)
        mask[positions] = False
        keep.setdefault(name, {})[dim] = mask.nonzero().squeeze(1)
    replace_tensors(model, {name: _select(state[name], dims) for name, dims in keep.items()})
    drop_caches(model)


def _select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    for dim, index in dims.items():
        tensor = tensor.detach().index_select(dim, index.to(tensor.device))
    return tensor.contiguous()
