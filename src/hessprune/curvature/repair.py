r"""What the loss of units costs once the layers that read them have been refitted.

First, one pass over the data measures the covariance of every reading layer's inputs and the curvature of the loss in
its outputs; from these, units are eliminated one by one (`elimination`), which gives an order and, for every number of
units gone, the changed weights `ΔW`. Then a second pass measures by how much these changes shift the logits,

    Δf_n = Σ_layers Σ_t J_{n,t} ΔW (x_{n,t} − x̄) ,

errors at all positions and in all layers that read the units added up, and what that shift does to the loss beyond its
gradient: for cross-entropy the divergence of the outputs from what they were. Only the network inside is linearised; a
quadratic form in the logits would say that confident samples can be moved at no cost, however far.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.curvature.elimination import Elimination
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, pose
from hessprune.curvature.readers import Reader, measure_readers
from hessprune.curvature.results import ParamSlice, Slices  # noqa: F401 - the example needs ParamSlice
from hessprune.curvature.risk import LossFn, loss_weight, module_of, typed
from hessprune.foundation.trees import sample_rows, to_device
from hessprune.layers.regression import outputs_by_sample, weight_from

LEVELS = 24
"""Numbers of removed units at which the effect is measured; in between it is interpolated."""
CHANGES_BYTES = 2 << 30
"""Memory for changed weights; fewer levels where it would take more."""
COLUMNS = 10
"""Logits of each sample that are followed through the network, at one backward pass each."""
TIE = 1e-9
"""Relative difference of losses below which the first unit goes first."""
BACKWARDS = 2560
"""Backward passes of single samples in the second pass; samples are left out where it would take more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """The units of one key in the order in which they go, and what that costs in all."""

    order: Tensor
    """`(U,)` int64."""
    loss: Tensor
    """`(U,)` float64: increase of the loss when `order[: k + 1]` are gone."""


def repaired_losses(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: LossFn | None = None,
    precision: str = "fp32",
    seed: int = 0,
    options: TraceOptions | None = None,
) -> dict[str, Repair]:
    """Return for each key its units from least to most needed, and the loss increase after each removal.

    Costs one forward and backward pass over all samples, ten backward passes over every second of 512 (the second pass
    is as long for more), and `O(U K²)` for each layer that reads `K` inputs.

    Args:
        model: Any module; it is left as it was.
        slices: For each key what reads its units: slices of weights along their input axis.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        precision: `"fp64"`; anything else means fp32.
        seed: For a draw in logit space, and the positions at which inputs are looked at.
        options: Memory limit.

    Returns:
        One result per key, on the CPU.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:, 2] = x[:, 0] - x[:, 1]  # the others can take over for any one
        >>> inputs = {"x": [ParamSlice(param="weight", dim=1, index=torch.arange(3)[:, None])]}
        >>> loss = repaired_losses(model, inputs, [(x, torch.zeros(64, dtype=torch.int64))])["x"].loss
        >>> bool(loss[0] < 1e-4 * loss[2])
        True
    """
    options = options or TraceOptions()
    effort = Effort(estimator="rademacher", precision="fp64" if precision == "fp64" else "fp32", options=options)
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    layers, samples = measure_readers(problem, seed)
    paths = _eliminate(problem, layers)
    losses = _measure_changes(problem, layers, paths, stride=math.ceil(samples * COLUMNS / BACKWARDS))
    return {key: _interpolated(path, losses[key]) for key, path in paths.items()}


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The elimination of one key's units, with the changed weights at some levels."""

    order: list[int]
    levels: list[int]
    """Numbers of units gone."""
    changes: Mapping[str, Tensor]
    """For each weight `(levels, numel)`."""


def _eliminate(problem: Problem, layers: Mapping[str, Reader]) -> dict[str, _Path]:
    pairs = sum(layers[piece.param].weight.numel() for pieces in problem.want.slices.values() for piece in pieces)
    levels = max(4, min(LEVELS, CHANGES_BYTES // max(1, 4 * pairs)))
    statistics = {name: layer.statistics() for name, layer in layers.items()}
    return {key: _path(pieces, layers, statistics, levels) for key, pieces in problem.want.slices.items()}


def _path(
    pieces: Any, layers: Mapping[str, Reader], statistics: Mapping[str, tuple[Tensor, Tensor]], levels: int
) -> _Path:
    places: dict[str, list[Tensor]] = {}
    for piece in pieces:
        places.setdefault(piece.param, []).append(layers[piece.param].places(piece.index))
    readers = {
        name: Elimination(layers[name].columns(), statistics[name][0], statistics[name][1], torch.cat(found, 1))
        for name, found in places.items()
    }
    units = len(pieces[0].index)
    stops = sorted({round(units * (level + 1) / min(levels, units)) for level in range(min(levels, units))})
    left, order, changes = torch.arange(units), [], {name: [] for name in readers}
    while len(left):
        losses = torch.stack([reader.losses(left) for reader in readers.values()]).sum(0)
        unit = int(left[_first_of_least(losses)])
        for reader in readers.values():
            reader.remove(unit)
        left = left[left != unit]
        order.append(unit)
        for name, reader in readers.items() if len(order) in stops else ():
            layer = layers[name]
            change = weight_from(layer.call, reader.change, layer.weight) if layer.regression else reader.change[0]
            changes[name].append(change.to(layer.weight.dtype).flatten())
    return _Path(order=order, levels=stops, changes={name: torch.stack(rows) for name, rows in changes.items()})


def _first_of_least(losses: Tensor) -> int:
    """Return the first index of the least loss; what differs by rounding alone is equal, as twins among units are."""
    least = losses.min()
    return int((losses <= least + TIE * least.abs()).nonzero()[0])


class _EffectMode(TapMode):
    """Sums over layers what changed weights do to each sample, in the direction of a draw."""

    def __init__(self, problem: Problem, layers: Mapping[str, Reader], paths: Mapping[str, _Path]) -> None:
        super().__init__(problem.folded, problem.want, 1)
        self._layers = layers
        self._paths = paths
        self.effects: dict[str, Tensor] = {}

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Multiply per-sample gradients with the changes."""
        layer, gradients = self._layers[site.name], self._gradients(site, x, weight, delta)
        if layer.regression and layer.centred:
            gradients = gradients - self._constant(layer, weight, delta)
        for key, path in self._paths.items():
            if site.name in path.changes:
                effect = gradients.flatten(1) @ path.changes[site.name].T
                self.effects[key] = self.effects[key] + effect if key in self.effects else effect

    def _constant(self, layer: Reader, weight: Tensor, delta: Tensor) -> Tensor:
        """Return the part of the gradients that a mean input accounts for."""
        mean, rows = layer.mean.to(delta.dtype), outputs_by_sample(layer.call, delta, self.samples)
        sums = rows.sum(1).unflatten(1, (len(mean), -1))  # (N, g, O)
        outer = torch.einsum("ngo,gk->ngko", sums, mean)
        return torch.stack([weight_from(layer.call, one, weight) for one in outer])


def _measure_changes(
    problem: Problem, layers: Mapping[str, Reader], paths: Mapping[str, _Path], stride: int
) -> dict[str, Tensor]:
    """Return for each key the loss at its levels, measured on every `stride`-th sample that counts."""
    losses = {key: torch.zeros(len(path.levels), dtype=torch.float64) for key, path in paths.items()}
    total, position = 0.0, 0
    for inputs, targets in problem.each_batch("repair"):
        samples = problem.counted(targets)
        for rows in problem.split(samples[-position % stride :: stride]):
            mode = _EffectMode(problem, layers, paths)
            with problem.precision.casting(problem.device):
                mode.forward(sample_rows(inputs, rows))
            weight = loss_weight(problem.loss_fn, targets[rows])
            for key, shifts in _shifts(mode).items():
                losses[key] += weight * _divergence(problem, mode.logits, targets[rows], shifts)
            total += weight
            mode.close()
        position += len(samples)
    return {key: value.clamp(min=0) / total for key, value in losses.items()}


def _shifts(mode: _EffectMode) -> dict[str, Tensor]:
    """Return by how much the changes at each level shift the logits, `{key: (levels, N, *)}`.

    Of many logits only the highest of each sample are followed; the others go along with these, on average.
    """
    logits = mode.logits.flatten(1)
    chosen = logits.topk(min(COLUMNS, logits.shape[1])).indices
    found: dict[str, list[Tensor]] = {}
    for column in chosen.unbind(1):
        mode.effects.clear()
        mode.push_back(F.one_hot(column, logits.shape[1]).view(mode.logits.shape))
        for key, effect in mode.effects.items():
            found.setdefault(key, []).append(effect)
    share = logits.gather(1, chosen).softmax(1)
    return {key: _spread(torch.stack(effects), chosen, share, mode.logits.shape) for key, effects in found.items()}


def _spread(effects: Tensor, chosen: Tensor, share: Tensor, shape: torch.Size) -> Tensor:
    """Put the effects on some logits, `(K, N, levels)`, among all of them, `(levels, N, *)`."""
    others = torch.einsum("nk,knl->ln", share.to(effects), effects)
    every = others[:, :, None].repeat(1, 1, shape[1:].numel())
    every.scatter_(2, chosen.expand(len(every), -1, -1), effects.permute(2, 1, 0))
    return every.view(-1, *shape)


def _divergence(problem: Problem, logits: Tensor, targets: Tensor, shifts: Tensor) -> Tensor:
    """Return by how much each shift changes the mean loss beyond its gradient, `(levels,)`.

    A small difference of large numbers, so in double precision where the loss is known.
    """
    if module_of(problem.loss_fn) is None:
        loss_fn: LossFn = problem.loss
    else:
        loss_fn = typed(problem.loss_fn, logits.device, torch.float64) or F.cross_entropy
        logits, targets, shifts = to_device((logits, targets, shifts), logits.device, torch.float64)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = loss_fn(leaf, targets)
        slope = torch.autograd.grad(loss, leaf)[0]
    rises = [loss_fn(logits + shift, targets) - loss.detach() - (slope * shift).sum() for shift in shifts]
    return torch.stack(rises).double().cpu()


def _interpolated(path: _Path, losses: Tensor) -> Repair:
    counts = np.arange(1, len(path.order) + 1)
    values = np.interp(counts, [0, *path.levels], [0.0, *losses.tolist()])
    return Repair(order=torch.tensor(path.order), loss=torch.from_numpy(values))
