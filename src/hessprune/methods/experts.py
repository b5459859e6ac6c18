"""Experts whose weights are stacked in one tensor, as layers of their own while they are scored.

Transformers holds the experts of a mixture in tensors `(E, 2I, H)` and `(E, H, I)`, of which the forward takes a slice
for each expert. Curvature and gradients of single samples are those of layers, so each expert becomes two of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model, device_of, logits_of, split_name
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import sample_rows, to_device
from hessprune.structure.groups import Group, Slice

STACKED = {"gate_up_proj": "up", "down_proj": "down"}
"""The tensors of stacked experts, and the layers that hold their slices."""


class ExpertsApart(nn.Module):
    """Experts `down(act(gate) · value)` with `gate, value = up(x)`, two layers for each, on views of stacked weights.

    Args:
        stacked: A module of transformers with `gate_up_proj` `(E, 2I, H)`, `down_proj` `(E, H, I)` and `act_fn`.
    """

    def __init__(self, stacked: Any) -> None:
        super().__init__()
        self.up, self.down = (nn.ModuleList(map(_linear, getattr(stacked, name))) for name in STACKED)
        self.activation: Callable[[Tensor], Tensor] = stacked.act_fn

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs for each row; every expert runs, perhaps on no row."""
        out = torch.zeros_like(hidden_states)
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            rows, places = torch.where(top_k_index == number)
            gate, value = up(hidden_states[rows]).chunk(2, -1)
            new = down(self.activation(gate) * value) * top_k_weights[rows, places, None]
            out = out.index_add(0, rows, new.to(out.dtype))
        return out


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return layer


@contextmanager
def experts_apart(model: nn.Module, groups: Sequence[Group], batches: Any) -> Iterator[list[Group]]:
    """Put `ExpertsApart` in the place of stacked experts in a block, where the model then answers as before.

    Args:
        model: It has its own modules again behind the block.
        groups: From `find_groups`.
        batches: Pairs of inputs and targets; the answers to the first and the last sample of a batch are compared.

    Yields:
        The groups, with slices of the new layers in the place of those of stacked weights.
    """
    stacked = {name: module for name, module in model.named_modules() if name and _is_stacked(module)}
    if not stacked:
        yield [*groups]
        return
    inputs = to_device(next(iter(batches))[0], device_of(model))
    two = sample_rows(inputs, torch.tensor([0, -1], device="cpu"))
    before, apart = _answer(model, two), {module: ExpertsApart(module) for module in stacked.values()}
    try:
        _exchange(model, apart)
        if _agrees(model, two, before):
            yield [_apart(group, stacked) for group in groups]
        else:
            _exchange(model, {new: module for module, new in apart.items()})
            yield [*groups]
    finally:
        _exchange(model, {new: module for module, new in apart.items()})


def _is_stacked(module: nn.Module) -> bool:
    """Return whether transformers marks a module as experts, and it holds two stacks of weights and nothing else."""
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
    if not hasattr(module, "_is_expert_parallel") or shapes.keys() != STACKED.keys():
        return False
    up, down = (shapes[name] for name in STACKED)
    return len(up) == len(down) == 3 and (up[0], up[1], up[2]) == (down[0], 2 * down[2], down[1])


@torch.no_grad()
def _answer(model: nn.Module, inputs: Any) -> Tensor:
    with evaluation_mode(model):
        return logits_of(call_model(model, inputs))


def _agrees(model: nn.Module, inputs: Any, before: Tensor) -> bool:
    try:
        after = _answer(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):  # experts that are called in another way
        return False
    return torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def _exchange(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some, in all of them where blocks share one."""
    for name, module in [*model.named_modules(remove_duplicate=False)]:
        if module in others:
            owner, place = split_name(name)
            setattr(model.get_submodule(owner), place, others[module])


def _apart(group: Group, stacked: Mapping[str, nn.Module]) -> Group:
    """Return a group with a slice of each expert's layer in the place of one of all experts."""
    slices: list[Slice] = []
    for piece in group.slices:
        owner, attribute = split_name(piece.param)
        if owner in stacked:
            layers = f"{owner}.{STACKED[attribute]}"
            number = len(getattr(stacked[owner], attribute))
            parts = (f"{layers}.{expert}.weight" for expert in range(number))
            slices += [replace(piece, param=part, dim=piece.dim - 1) for part in parts]
        else:
            slices.append(piece)
    return replace(group, slices=tuple(slices))
