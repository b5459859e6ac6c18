r"""The loss along the elimination of units, where the layers that read them are refitted after each removal.

A first pass over the data measures the covariance of every reading layer's inputs and the curvature of the loss in the
layer's outputs. From these, units are eliminated in small blocks (`elimination`). That gives an order, and for some
numbers of removed units the change `ΔW` of the reading layers' weights. A second pass measures the shift of the logits,

    Δf_n = Σ_layers Σ_t J_{n,t} ΔW (x_{n,t} − x̄) ,

summed over all positions and all layers that read the units, and the rise of the loss under that shift beyond its
gradient. For cross-entropy this is the divergence of the new outputs from the old ones. Only the network is
linearised: a quadratic form in the logits would say that confident samples can be moved at no cost, however far.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprune.curvature.draws import signs
from hessprune.curvature.elimination import Elimination, eliminate
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, pose
from hessprune.curvature.reading_layers import ReadingLayer, measure_reading_layers, moments_of
from hessprune.curvature.results import Slices
from hessprune.curvature.room import room_for
from hessprune.foundation.processes import summed, summed_numbers
from hessprune.foundation.shelf import Shelf
from hessprune.foundation.trees import sample_rows
from hessprune.layers.input_moments import InputMoments
from hessprune.layers.regression import outputs_by_sample, weight_from
from hessprune.objectives.factors import LogitFactor, SoftmaxFactor
from hessprune.objectives.objective import BatchLoss

LEVELS = 24
"""Most numbers of removed units at which the loss is measured; the loss is interpolated in between."""
CHANGES_BYTES = 2 << 30
"""Memory for changed weights; there are fewer levels where 24 would take more."""
COLUMNS = 10
"""Most values of each sample that are pushed back, with one backward pass each, or random directions instead; of many
logits the highest."""
SEED = 1 << 40
"""Seed of the random directions in which many values are measured; that of the curvature is another."""
DIRECTIONS = 128
"""Random directions, counted per sample, that suffice where a sample has several positions: each direction mixes all of
them. A mean of so many squares has a standard error of an eighth."""
BACKWARDS = 2560
"""Most backward passes, counted per sample, of the second pass; samples are left out where all would take more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EliminationPath:
    """The units of one key in the order of their removal, and the loss along it."""

    order: Tensor
    """`(U,)` int64."""
    loss: Tensor
    """`(U,)` float64: increase of the loss without the units `order[: k + 1]`."""


def eliminated_losses(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: Any = None,
    precision: str = "fp32",
    seed: int = 0,
    options: TraceOptions | None = None,
    moments: dict[str, InputMoments] | None = None,
) -> dict[str, EliminationPath]:
    """Eliminate the units of each key from least to most needed; return the loss increase after each removal.

    The increase refers to the mean loss over samples. Costs one forward and backward pass over all samples, up to ten
    backward passes (nine for classes, of texts 128 in all) over 256 samples (all of up to 256, each second one of 512),
    and `O(K³)` operations for each layer that reads `K` inputs. The result depends on the order of the samples, but not
    on batches or chunks.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the weights that read its units: slices along their input axis.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        precision: `"fp64"`; any other means fp32.
        seed: For one draw in logit space for each sample, and for the positions at which inputs are sampled.
        options: Memory limit; half of what is free if it is None. Statistics beyond it lie in files.
        moments: Receives the moments of the inputs of each layer that reads units, by weight.

    Returns:
        One path per key, on the CPU.

    Raises:
        DataError: All targets are ignored by the loss.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature import ParamSlice
        >>> from hessprune.curvature.elimination_path import eliminated_losses
        >>> model = nn.Linear(3, 2)
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:, 2] = x[:, 0] - x[:, 1]  # the others can take over for any one
        >>> inputs = {"x": [ParamSlice(param="weight", dim=1, index=torch.arange(3)[:, None])]}
        >>> loss = eliminated_losses(model, inputs, [(x, torch.zeros(64, dtype=torch.int64))])["x"].loss
        >>> bool(loss[0] < 1e-4 * loss[2])
        True
    """
    options = replace(options or TraceOptions(), activations=0.5)
    effort = Effort(estimator="rademacher", precision="fp64" if precision == "fp64" else "fp32", options=options)
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    shelf, estimate = room_for(problem, options, _most_levels(problem)[1])
    problem = replace(problem, note=str(estimate))
    layers, counted = measure_reading_layers(problem, seed, shelf=shelf)
    if moments is not None:
        moments |= moments_of(layers)
    paths = _eliminate(problem, layers, shelf)
    losses = _measure_changes(problem, layers, paths, counted)
    return {key: _interpolated(path, losses[key]) for key, path in paths.items()}


@dataclass(frozen=True)
class _Removals:
    """The order in which one key's units are removed, with the changed weights at some levels."""

    order: list[int]
    levels: list[int]
    """Numbers of removed units."""
    changes: Mapping[str, Tensor]
    """For each weight `(levels, numel)`."""
    at_mean: Mapping[str, Tensor]
    """For each weight the change of the layer's output at its mean input, `(levels, O)`; not used without a bias."""


def _most_levels(problem: Problem) -> tuple[int, int]:
    """Return the most levels of a key, and the bytes of all changed weights."""
    pieces = [piece for pieces in problem.readout.slices.values() for piece in pieces]
    each = 4 * sum(problem.folded.model.get_parameter(piece.param).numel() for piece in pieces)
    levels = max(4, min(LEVELS, CHANGES_BYTES // max(1, each)))
    return levels, levels * each


def _eliminate(problem: Problem, layers: Mapping[str, ReadingLayer], shelf: Shelf) -> dict[str, _Removals]:
    slices = problem.readout.slices
    readers = {key: list(dict.fromkeys(piece.param for piece in pieces)) for key, pieces in slices.items()}
    levels = _most_levels(problem)[0]
    pending, statistics, removals = Counter(chain.from_iterable(readers.values())), {}, {}
    for key, pieces in slices.items():
        for name in readers[key]:
            statistics[name] = statistics.get(name) or layers[name].statistics()
        removals[key] = _remove_all(pieces, layers, statistics, levels, shelf)
        pending.subtract(readers[key])
        statistics = {name: held for name, held in statistics.items() if pending[name]}
    return removals


def _remove_all(
    pieces: Any,
    layers: Mapping[str, ReadingLayer],
    statistics: Mapping[str, tuple[Tensor, Tensor | None]],
    levels: int,
    shelf: Shelf,
) -> _Removals:
    """Remove the units of least loss until none is left."""
    places: dict[str, list[Tensor]] = {}
    for piece in pieces:
        places.setdefault(piece.param, []).append(layers[piece.param].places(piece.index))
    shrinking = {
        name: Elimination(layers[name].columns(), *statistics[name], torch.cat(rows, 1), shelf=shelf)
        for name, rows in places.items()
    }
    units = len(pieces[0].index)
    stops = sorted({round(units * (level + 1) / min(levels, units)) for level in range(min(levels, units))})
    order: list[int] = []
    weights = {name: layers[name].weight for name in shrinking}
    changes = {
        name: shelf.zeros(len(stops), weight.numel(), dtype=weight.dtype, device=weight.device)
        for name, weight in weights.items()
    }
    at_mean: dict[str, list[Tensor]] = {name: [] for name in shrinking}
    for level, gone in enumerate(eliminate(list(shrinking.values()), stops)):
        order += gone
        for name, reader in shrinking.items():
            layer, change = layers[name], reader.change
            at_mean[name].append(layer.at_mean(change).to(layer.weight.dtype))
            change = weight_from(layer.call, change, layer.weight) if layer.regression else change[0]
            changes[name][level] = change.flatten()
    return _Removals(order, stops, changes, {name: torch.stack(rows) for name, rows in at_mean.items()})


class _ShiftMode(TapMode):
    """Adds up over layers how far changed weights move one logit of each sample."""

    def __init__(self, problem: Problem, layers: Mapping[str, ReadingLayer], paths: Mapping[str, _Removals]) -> None:
        super().__init__(problem.folded, problem.readout, 1, problem.objective.read)
        self._layers = layers
        self._paths = paths
        self.effects: dict[str, Tensor] = {}

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Add the products of per-sample gradients and changed weights, less those at the mean input."""
        name, layer = site.name, self._layers[site.name]
        gradients = self._gradients(site, x, weight, delta).flatten(1)
        centred = layer.regression and layer.centred
        sums = outputs_by_sample(layer.call, delta, self.samples).sum(1) if centred else None
        for key, path in self._paths.items():
            if name in path.changes:
                effect = gradients @ path.changes[name].T
                effect = effect if sums is None else effect - sums @ path.at_mean[name].T
                self.effects[key] = self.effects[key] + effect if key in self.effects else effect


def _measure_changes(
    problem: Problem, layers: Mapping[str, ReadingLayer], paths: Mapping[str, _Removals], counted: Sequence[int]
) -> dict[str, Tensor]:
    """Return for each key the loss at its levels, measured on every so many samples of those `counted` in batches."""
    losses = {key: torch.zeros(len(path.levels), dtype=torch.float64) for key, path in paths.items()}
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
                for key, rises in _rises(mode, loss, factor, rows, position + rows, draws).items():
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
            squares[key] = squares.get(key, torch.zeros(())) + effect.double().square().sum(0).cpu() / 2
    return {key: total / max(factor.weight, 1e-300) for key, total in squares.items()}


def _effects(mode: _ShiftMode, direction: Tensor) -> dict[str, Tensor]:
    """Return how far each level moves the values along one direction, `{key: (N, levels)}`."""
    mode.effects.clear()
    mode.push_back(direction)
    return dict(mode.effects)


def _shifts(mode: _ShiftMode, one_softmax: bool) -> dict[str, Tensor]:
    """Return the shift of the values at each level, `{key: (levels, N, *)}`.

    Of many logits only the highest of each sample are pushed back; the others shift by the mean of these, weighted by
    their probabilities. A softmax sees differences alone: all shifts are then less that of the likeliest class.
    """
    values = mode.values.reshape(len(mode.values), -1)
    chosen = values.topk(min(COLUMNS, values.shape[1])).indices
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


def _interpolated(removals: _Removals, losses: Tensor) -> EliminationPath:
    counts = np.arange(1, len(removals.order) + 1)
    values = np.interp(counts, [0, *removals.levels], [0.0, *losses.tolist()])
    return EliminationPath(order=torch.tensor(removals.order), loss=torch.from_numpy(values))
