"""Weights of new units: what reads them is arranged so that the outputs stay, and so that they can learn."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hessprune.foundation.tensors import named_tensors
from hessprune.structure.groups import Group, Slice

SPREAD = 0.5
"""Of the random part of a shared weight, in units of the tensor's own spread."""


def begin(
    model: nn.Module,
    groups: Sequence[Group],
    added: Mapping[str, Sequence[int]],
    parents: Mapping[str, Sequence[int]],
    *,
    start: str,
    seed: int,
) -> None:
    """Set the weights of new units, which are copies of their parents, in place.

    Args:
        model: The model with the copies.
        groups: Its groups.
        added: New units by group name.
        parents: The unit that each of them copies.
        start: `"split"`: parent and copies share what reads the parent; `"fresh"`: random weights, read with zero.
        seed: Decides the random numbers.
    """
    state, generator = dict(named_tensors(model)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in groups:
            units = added.get(group.name, ())
            for piece in group.slices if units and start == "fresh" else ():
                if piece.role == "producer":
                    _draw(state[piece.param], piece, units, generator)
            for piece in group.slices if units else ():
                if piece.role == "consumer" and start == "fresh":
                    state[piece.param].index_fill_(piece.dim, _positions(state[piece.param], piece, units), 0)
                elif piece.role == "consumer":
                    for family in _families(units, parents[group.name]):
                        _share(state[piece.param], piece, family, generator)


def living_units(model: nn.Module, group: Group) -> list[int]:
    """Return the units of a group that some weight produces, or all of them where none is.

    A copy of another one would pass no gradient on, as behind a ReLU, and could not learn.
    """
    state, alive = dict(named_tensors(model)), torch.zeros(group.num_units, dtype=torch.bool, device="cpu")
    for piece in group.slices_with_role("producer"):
        if (tensor := state[piece.param].detach()).dim() > 1:
            lines = _lines(tensor, piece, range(group.num_units)).movedim(piece.dim, 0)
            alive |= (lines.reshape(group.num_units, -1) != 0).any(1).cpu()
    return alive.nonzero().flatten().tolist() or [*range(group.num_units)]


def _families(units: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
    """Return each parent with its copies."""
    families: dict[int, list[int]] = {}
    for unit, parent in zip(units, parents, strict=True):
        families.setdefault(parent, [parent]).append(unit)
    return list(families.values())


def _share(tensor: Tensor, piece: Slice, family: Sequence[int], generator: torch.Generator) -> None:
    """Divide the weights that read a unit among it and its copies: `w / k + δ`, where the `δ` sum to zero."""
    whole = _lines(tensor, piece, family[:1])
    spread = SPREAD * _spread(tensor)
    drawn = torch.randn(len(family), *whole.shape, generator=generator, dtype=torch.float64, device="cpu")
    shares = (drawn - drawn.mean(0)).to(tensor) * spread + whole / len(family)
    for unit, share in zip(family, shares, strict=True):
        tensor.index_copy_(piece.dim, _positions(tensor, piece, [unit]), share)


def _draw(tensor: Tensor, piece: Slice, units: Sequence[int], generator: torch.Generator) -> None:
    """Give the new units of a producer normal weights of the tensor's own spread."""
    lines = _lines(tensor, piece, units)
    drawn = torch.randn(lines.shape, generator=generator, dtype=torch.float64, device="cpu").to(tensor)
    tensor.index_copy_(piece.dim, _positions(tensor, piece, units), drawn * _spread(tensor))


def _spread(tensor: Tensor) -> float:
    """Return the deviation of the numbers; where they are equal, their size, or that of a fresh layer for zeros."""
    numbers = tensor.double()
    deviation, size = float(numbers.std(correction=0)), float(numbers.square().mean().sqrt())
    return deviation if deviation > 1e-6 * size else size or tensor[0].numel() ** -0.5


def _positions(tensor: Tensor, piece: Slice, units: Sequence[int]) -> Tensor:
    return piece.positions(units).reshape(-1).to(tensor.device)


def _lines(tensor: Tensor, piece: Slice, units: Sequence[int]) -> Tensor:
    return tensor.index_select(piece.dim, _positions(tensor, piece, units))
