"""The loss at some levels of an elimination: how far the changed weights of all layers move the logits together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.draws import signs
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.problem import Problem
from hessprune.curvature.reading_layers import ReadingLayer
from hessprune.foundation.processes import summed, summed_numbers
from hessprune.foundation.trees import sample_rows
from hessprune.layers.regression import outputs_by_sample
from hessprune.objectives.factors import LogitFactor, SoftmaxFactor
from hessprune.objectives.objective import BatchLoss

COLUMNS = 10
"""Most values of each sample that are all pushed back, with one backward pass each; of more, random directions."""
LIKELIEST = 2
"""Classes of each sample whose logits are pushed back where there are more than `COLUMNS`; one is the reference.

With two of ten classes instead of all, a pretrained ResNet-20 loses no accuracy (`docs/scale.md`)."""
SEED = 1 << 40
"""Seed of the random directions in which many values are measured; that of the curvature is another."""
DIRECTIONS = 128
"""Random directions, counted per sample, that suffice where a sample has several positions: each direction mixes all of
them. A mean of so many squares has a standard error of an eighth."""
BACKWARDS = 2560
"""Most backward passes, counted per sample, of the second pass; samples are left out where all would take more."""


@dataclass(frozen=True)
class Removals:
    """The order in which one key's units are removed, with the changed weights at some levels."""

    order: list[int]
    levels: list[int]
    """Numbers of removed units."""
    changes: Mapping[str, Tensor]
    """For each weight `(levels, numel)`."""
    at_mean: Mapping[str, Tensor]
    """For each weight the change of the layer's output at its mean input, `(levels, O)`; not used without a bias."""


class _ShiftMode(TapMode):
    """Adds up over layers how far changed weights move one logit of each sample."""

    def __init__(self, problem: Problem, layers: Mapping[str, ReadingLayer], paths: Mapping[str, Removals]) -> None:
        super().__init__(problem.folded, problem.readout, 1, problem.objective.read)
        self._layers = layers
        self._paths = paths
        self.effects: dict[str, Tensor] = {}

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Add the products of per-sample gradients and changed weights, less those at the mean input."""
        name, layer = site.name, self._layers[site.name]
        gradients = self._gradients(site, x.to(delta.dtype), weight, delta).flatten(1).to(layer.weight.dtype)
        centred = layer.regression and layer.centred
        sums = outputs_by_sample(layer.call, delta, self.samples).sum(1).to(layer.weight.dtype) if centred else None
        for key, path in self._paths.items():
            if name in path.changes:
                effect = gradients @ path.changes[name].T
                effect = effect if sums is None else effect - sums @ path.at_mean[name].T
                self.effects[key] = self.effects[key] + effect if key in self.effects else effect


def measure_changes(
    problem: Problem, layers: Mapping[str, ReadingLayer], paths: Mapping[str, Removals], counted: Sequence[int]
) -> dict[str, Tensor]:
    """Return for each key the loss at its levels, measured on every so many samples of those `counted` in batches."""
    losses = {key: torch.zeros(len(path.levels), dtype=torch.float64, device="cpu") for key, path in paths.items()}
    total, stride = 0.0, math.ceil(sum(counted) * COLUMNS / BACKWARDS)
    draws = min(COLUMNS, math.ceil(DIRECTIONS * stride / max(1, sum(counted))))
    for place, inputs, loss in problem.each_batch("elimination"):
        position, samples = sum(counted[: place.number]), loss.counted()
        for rows in problem.split(samples[-position % stride :: stride]):
            mode = _ShiftMode(problem, layers, paths)
            with problem.precision.casting(problem.device):
                mode.forward(sample_rows(inputs, rows))
            factor = loss.factor(mode.values, rows)
            if (weight := loss.weight(rows)) > 0:
                for key, rises in _rises(mode, loss, factor, rows, place.position + rows, draws).items():
                    losses[key] += weight * rises
            total += weight
            mode.close()
    (total,) = summed_numbers(total)
    return {key: summed(value).clamp(min=0) / total for key, value in losses.items()}


def _rises(
    mode: _ShiftMode, loss: BatchLoss, factor: LogitFactor, rows: Tensor, places: Tensor, draws: int
) -> dict[str, Tensor]:
    """Return the rise of the mean loss of some samples at each level, less the gradient's part, `{key: (levels,)}`.

    The loss itself is measured where the shifts of all values are known, or those of the likeliest classes. Elsewhere
    it is half of the mean square of the shifts in random directions `S ξ`, which is `½ Δfᵀ S Sᵀ Δf` on average; of
    texts, in `draws` of them.
    """
    size = mode.values[0].numel()
    is_softmax = isinstance(factor, SoftmaxFactor)
    one_softmax = is_softmax and factor.sample_weight.shape[1] == 1
    if size <= COLUMNS or one_softmax:
        return {key: loss.rises(mode.values, rows, shifts) for key, shifts in _shifts(mode, one_softmax).items()}
    columns, every = factor.mass.shape[1], torch.arange(len(rows), device=rows.device)
    if columns <= COLUMNS:
        directions = [factor.columns(every, torch.full_like(every, column)) for column in range(columns)]
    else:
        number = draws if is_softmax else COLUMNS
        drawn = (signs(SEED, draw, places, columns) for draw in range(number))
        directions = [factor.draw(every, xi) / number**0.5 for xi in drawn]
    squares: dict[str, Tensor] = {}
    for direction in directions:
        for key, effect in _effects(mode, direction).items():
            squares[key] = squares.get(key, torch.zeros((), device="cpu")) + effect.double().square().sum(0).cpu() / 2
    return {key: total / max(factor.weight, 1e-300) for key, total in squares.items()}


def _effects(mode: _ShiftMode, direction: Tensor) -> dict[str, Tensor]:
    """Return how far each level moves the values along one direction, `{key: (N, levels)}`."""
    mode.effects.clear()
    mode.push_back(direction)
    return dict(mode.effects)


def _shifts(mode: _ShiftMode, one_softmax: bool) -> dict[str, Tensor]:
    """Return the shift of the values at each level, `{key: (levels, N, *)}`.

    Of more than `COLUMNS` logits only the highest of each sample are pushed back; the others shift by the mean of
    these, weighted by their probabilities. A softmax sees differences alone: all shifts are then less that of the
    likeliest class.
    """
    values = mode.values.reshape(len(mode.values), -1)
    number = values.shape[1]
    chosen = values.topk(number if number <= COLUMNS else LIKELIEST).indices
    held = one_softmax and chosen.shape[1] > 1
    by_value: dict[str, list[Tensor]] = {}
    for column in chosen[:, held:].unbind(1):
        unit = torch.zeros_like(values).scatter_(1, column[:, None], 1.0)
        if held:
            unit.scatter_(1, chosen[:, :1], -1.0)
        for key, effect in _effects(mode, unit.view(mode.values.shape)).items():
            by_value.setdefault(key, [torch.zeros_like(effect)] * held).append(effect)
    share = values.gather(1, chosen).softmax(1)
    return {key: _spread(torch.stack(effects), chosen, share, mode.values.shape) for key, effects in by_value.items()}


def _spread(effects: Tensor, chosen: Tensor, share: Tensor, shape: torch.Size) -> Tensor:
    """Spread the shifts of `K` chosen values, `(K, N, levels)`, over all values, `(levels, N, *)`."""
    others = torch.einsum("nk,knl->ln", share.to(effects), effects)
    every = others[:, :, None].repeat(1, 1, shape[1:].numel())
    every.scatter_(2, chosen.expand(len(every), -1, -1), effects.permute(2, 1, 0))
    return every.view(-1, *shape)
