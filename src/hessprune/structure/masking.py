"""Masks: a dense model with zeros in the slices of some units, and with norms over the channels that stay.

A unit without weight is gone everywhere but in the statistics of a norm that normalises it together with others. There
the norm of the remaining channels defines what a mask is: a module that holds one number per channel sees these
channels alone, and writes zeros in the places of the others.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from typing import Literal as Choice

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import split_name
from hessprune.foundation.state import drop_caches
from hessprune.foundation.tensors import named_tensors
from hessprune.structure.cutting import remove_slices
from hessprune.structure.groups import Group, Slice

Followers = Choice["kept", "layers", "all"]
"""The followers that a mask sets to zero: none; weights and biases of torch's own layers; all, with buffers."""

Leaving = tuple[Group, Sequence[int]]
"""A group, and the units that leave it."""


def mask_groups(model: nn.Module, leaving: Iterable[Leaving], followers: Followers) -> None:
    """Mask units of a dense model in place: zeros for producers, consumers and the chosen followers.

    Nothing reads a masked unit, so its followers may be kept, unless another activation multiplies it. Of an embedding
    all slices become zero, and its norms see the other channels alone.
    """
    pairs = [(group, units) for group, units in leaving if units]
    embedding = [pair for pair in pairs if pair[0].kind == "embedding"]
    _mask_norms(model, [(piece, units) for group, units in embedding for piece in group.slices])
    state = dict(named_tensors(model))
    with torch.no_grad():
        for group, units in pairs:
            for piece in group.slices:
                if group.kind == "embedding" or _is_masked(model, piece, followers):
                    tensor = state[piece.param]
                    tensor.index_fill_(piece.dim, piece.positions(units).reshape(-1).to(tensor.device), 0)
    drop_caches(model)


def _is_masked(model: nn.Module, piece: Slice, followers: Followers) -> bool:
    """Return whether a mask sets a slice to zero."""
    if piece.role != "follower" or followers == "all":
        return True
    module, attribute = split_name(piece.param)
    is_layer = type(model.get_submodule(module)).__module__.startswith("torch.nn.")
    return followers == "layers" and is_layer and attribute in {"weight", "bias"}


class _OverKept(nn.Module):
    """Base of norms over the channels that stay; `small` is the norm of these channels."""

    small: nn.Module
    stays: Tensor

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dim = _channel_axis(x, self.stays)
        places = self.stays.nonzero().squeeze(1)
        out = self.small(x.index_select(dim, places), *args, **kwargs)
        return torch.zeros_like(x, dtype=out.dtype).index_copy(dim, places, out)


def _channel_axis(x: Tensor, stays: Tensor) -> int:
    """Return the axis of the channels, the last one if several fit: there, the channels that leave are zero."""
    axes = [dim for dim in reversed(range(x.dim())) if x.shape[dim] == len(stays)]
    gone = (~stays).nonzero().squeeze(1)
    empty = (dim for dim in axes if not x.index_select(dim, gone).any())
    return axes[0] if len(axes) == 1 else next(empty)


def _mask_norms(model: nn.Module, cuts: Sequence[tuple[Slice, Sequence[int]]]) -> None:
    """Let every module that holds vectors of these channels alone see only those that stay."""
    by_module: dict[str, list[tuple[Slice, Sequence[int]]]] = {}
    for piece, units in cuts:
        name, attribute = split_name(piece.param)
        by_module.setdefault(name, []).append((replace(piece, param=attribute), units))
    norms = {id(model.get_submodule(name)): (name, parts) for name, parts in by_module.items() if name}
    for name, parts in norms.values():
        module = model.get_submodule(name)
        tensors = dict(named_tensors(module))
        if tensors.keys() == {piece.param for piece, _ in parts} and all(t.dim() == 1 for t in tensors.values()):
            stays = torch.ones(len(next(iter(tensors.values()))), dtype=torch.bool, device="cpu")
            for piece, units in parts:
                stays[piece.positions(units).reshape(-1)] = False
            small = copy.deepcopy(module)
            remove_slices(small, parts)
            module.__class__ = type(type(module).__name__, (_OverKept, type(module)), {})
            module.add_module("small", small)
            module.register_buffer("stays", stays.to(next(iter(tensors.values())).device))
