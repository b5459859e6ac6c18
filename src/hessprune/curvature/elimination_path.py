r"""The loss along the elimination of units, where the layers that read them are refitted after each removal.

A first pass over the data measures the covariance of every reading layer's inputs and the curvature of the loss in the
layer's outputs. From these, units are eliminated in small blocks (`elimination`). That gives an order, and for some
numbers of removed units the change `ΔW` of the reading layers' weights. A second pass measures the shift of the logits,

    Δf_n = Σ_layers Σ_t J_{n,t} ΔW (x_{n,t} − x̄) ,

summed over all positions and all layers that read the units, and the rise of the loss under that shift beyond its
gradient. For cross-entropy this is the divergence of the new outputs from the old ones. Only the network is
linearised: a quadratic form in the logits would say that confident samples can be moved at no cost, however far.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprune.curvature.elimination import Elimination, eliminate
from hessprune.curvature.elimination_losses import Removals, measure_changes
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, pose
from hessprune.curvature.reading_layers import ReadingLayer, measure_reading_layers, moments_of
from hessprune.curvature.results import Slices
from hessprune.curvature.room import room_for
from hessprune.foundation.shelf import Shelf
from hessprune.layers.input_moments import InputMoments
from hessprune.layers.regression import weight_from

LEVELS = 24
"""Most numbers of removed units at which the loss is measured; the loss is interpolated in between."""
CHANGES_BYTES = 2 << 30
"""Memory for changed weights; there are fewer levels where 24 would take more."""


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
    backward passes (nine for ten classes, one for more, of texts 128 in all) over 256 samples (all of up to 256, each
    second one of 512), and `O(K³)` operations for each layer that reads `K` inputs. The result depends on the order of
    the samples, but not on batches or chunks.

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
    losses = measure_changes(problem, layers, paths, counted)
    return {key: _interpolated(path, losses[key]) for key, path in paths.items()}


def _most_levels(problem: Problem) -> tuple[int, int]:
    """Return the most levels of a key, and the bytes of all changed weights."""
    pieces = [piece for pieces in problem.readout.slices.values() for piece in pieces]
    each = 4 * sum(problem.folded.model.get_parameter(piece.param).numel() for piece in pieces)
    levels = max(4, min(LEVELS, CHANGES_BYTES // max(1, each)))
    return levels, levels * each


def _eliminate(problem: Problem, layers: Mapping[str, ReadingLayer], shelf: Shelf) -> dict[str, Removals]:
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
) -> Removals:
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
            change = change[0] if layer.is_transposed else weight_from(layer.call, change, layer.weight)
            changes[name][level] = change.flatten()
    return Removals(order, stops, changes, {name: torch.stack(rows) for name, rows in at_mean.items()})


def _interpolated(removals: Removals, losses: Tensor) -> EliminationPath:
    counts = np.arange(1, len(removals.order) + 1)
    values = np.interp(counts, [0, *removals.levels], [0.0, *losses.tolist()])
    return EliminationPath(order=torch.tensor(removals.order, device="cpu"), loss=torch.from_numpy(values))
