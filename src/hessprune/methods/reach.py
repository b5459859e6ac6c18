"""Groups that an objective does not see: no gradient reaches them from an output that counts."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import device_of, forward
from hessprune.foundation.trees import leading_size, sample_rows, to_device
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.layers.recording import record
from hessprune.objectives.objective import BatchLoss, Objective
from hessprune.structure.groups import Group, Slice


def unseen_groups(model: nn.Module, groups: Sequence[Group], batches: Any, objective: Objective) -> list[str]:
    """Return the names of the groups whose parameters have no effect on what an objective reads.

    These lead only to an output outside the loss (an auxiliary head), or stand in front of a place that lets no
    gradient through (`detach`, `no_grad`). Nothing is known of what they are worth. Costs one forward and backward
    pass over two samples; over one batch for a loss without a closed form.

    Args:
        model: Left as it was.
        groups: From `find_groups`.
        batches: Pairs of inputs and targets.
        objective: What counts.
    """
    other = copy.deepcopy(model).eval().requires_grad_(True)
    inputs, targets = to_device(next(iter(batches)), device_of(model))
    samples = leading_size(inputs)
    loss = objective.on(inputs, targets, samples)
    if not loss.needs_outputs or (loss.compares and targets is None):
        inputs, samples = sample_rows(inputs, torch.tensor([0, -1], device="cpu")), 2
        loss = objective.on(inputs, targets, samples) if loss.needs_outputs else loss
    with torch.enable_grad(), slow_attention(), CallMode({}, samples):  # which also looks into control flow
        output = forward(other, inputs)
        values = objective.read(output, samples, inputs)
        if loss.needs_outputs:
            loss.see([(output, samples)], values)
    return _without_gradient(other, groups, values, loss)


def sampled_groups(model: nn.Module, groups: Sequence[Group], batches: Any, *, tables: bool = True) -> list[Group]:
    """Return the groups of which curvature and gradients of single samples exist, each with the slices that count.

    Layers that read a table, such as one of relative positions, know nothing of samples. A group that only such layers
    make, or only such layers read, is left out. So is one whose weights the forward multiplies in another way than by a
    linear map. Slices of layers that do not run, such as a head for training alone, are left out of their groups. Costs
    a forward pass over two samples and one over one.

    Args:
        model: Left as it was.
        groups: From `find_groups`.
        batches: Pairs of inputs and targets.
        tables: Whether units that tables alone give, such as an embedding of words, count, too.
    """
    recording = record(model, to_device(next(iter(batches))[0], device_of(model)))
    used, names = {use.weight for use in recording.uses}, weight_names(model)
    every = {name: names.get(id(v)) for name, v in model.named_parameters(remove_duplicate=False)}
    pieces = {
        piece.param for group in groups for role in ("producer", "consumer") for piece in group.slices_with_role(role)
    }
    weights = {name: first for name in pieces if (first := every.get(name)) is not None}
    idle = {name for name, first in weights.items() if first not in used | recording.met}
    other = {name for name, first in weights.items() if first not in used | recording.looked_up}
    other = {name for name in other - idle if ".parametrizations." not in name}  # which are refused with a remedy
    left_out = {name for name, first in every.items() if first in recording.shared} | idle
    alone = set() if tables else {name for name, first in weights.items() if first in recording.looked_up - used}
    return [
        replace(group, slices=tuple(piece for piece in group.slices if piece.param not in left_out))
        for group in groups
        if not _is_within(group.slices_with_role("producer"), alone)
        and not any(
            _is_within(held := group.slices_with_role(role), left_out) or any(piece.param in other for piece in held)
            for role in ("producer", "consumer")
        )
    ]


def _is_within(pieces: Sequence[Slice], names: Collection[str]) -> bool:
    """Return whether there are slices, all of weights with these names."""
    return bool(pieces) and all(piece.param in names for piece in pieces)


def _without_gradient(model: nn.Module, groups: Sequence[Group], values: Tensor, loss: BatchLoss) -> list[str]:
    every = dict(model.named_parameters(remove_duplicate=False))
    names = {piece.param for group in groups for piece in group.slices if piece.param in every}
    weights = {name: every[name] for name in sorted(names)}
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(values)
    reached = _gradients(values, weights, noise)
    read = (
        loss.slope(values) != 0
        if loss.needs_outputs and not loss.compares
        else torch.ones_like(values, dtype=torch.bool)
    )
    counted = reached if bool(read.all() | ~read.any()) else _gradients(values, weights, noise * read)
    return [group.name for group in groups if not _is_seen(group, reached, counted)]


def _gradients(values: Tensor, weights: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor | None]:
    if not values.requires_grad or not weights:
        return dict.fromkeys(weights)
    found = torch.autograd.grad(values, [*weights.values()], cotangent, retain_graph=True, allow_unused=True)
    return dict(zip(weights, found, strict=True))


def _is_seen(group: Group, reached: Mapping[str, Tensor | None], counted: Mapping[str, Tensor | None]) -> bool:
    """Return True if some parameter has an effect; a gradient of zero all the way, as of dead units, is one, too."""
    for name in {piece.param for piece in group.slices}:
        all_of_it, part = reached.get(name), counted.get(name)
        if all_of_it is not None and (
            part is all_of_it or not bool(all_of_it.any()) or bool(part is not None and part.any())
        ):
            return True
    return False
