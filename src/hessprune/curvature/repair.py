r"""What the loss of units costs once the layers that read them have been refitted.

First, one pass over the data measures the covariance of every reading layer's inputs and the curvature of the loss in
its outputs; from these, units are eliminated one by one (`elimination`), which gives an order and, for every number of
units gone, the changed weights `ΔW`. Then a second pass measures what these changes really do,

    loss(k) = 1/(2N) Σ_n ‖S_nᵀ Σ_layers Σ_t J_{n,t} ΔW_k (x_{n,t} − x̄)‖² ,

errors at all positions and in all layers that read the units added up before they are squared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hessprune._modules import sample_rows
from hessprune._watch.calls import Arguments, Call, Convolution
from hessprune._watch.regression import columns_of, design, rows_of, weight_from
from hessprune.curvature.draws import signs
from hessprune.curvature.elimination import Elimination, inverse
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, check_finite, pose
from hessprune.curvature.results import ParamSlice, Slices  # noqa: F401 - the example needs ParamSlice
from hessprune.curvature.risk import LossFn, logit_factor

LEVELS = 24
"""Numbers of removed units at which the effect is measured; in between it is interpolated."""
CHANGES_BYTES = 2 << 30
"""Memory for changed weights; fewer levels where it would take more."""
ROWS_PER_SAMPLE = 256
"""Positions of each sample that count in the covariance of a layer's inputs."""


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

    Costs two forward passes, three backward passes, and `O(U K²)` for each layer that reads `K` inputs.

    Args:
        model: Any module; it is left as it was.
        slices: For each key what reads its units: slices of weights along their input axis.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        precision: `"fp64"`; anything else means fp32.
        seed: For the draws in logit space.
        options: Memory limit, and the number of draws of the second pass (2).

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
    layers = _measure_layers(problem, seed)
    paths = _eliminate(problem, layers)
    losses = _measure_changes(problem, layers, paths, range(options.num_probes or 2), seed)
    return {key: _interpolated(path, losses[key]) for key, path in paths.items()}


@dataclass(kw_only=True)
class _Layer:
    """What one pass learns of a layer that reads units."""

    call: Call
    weight: Tensor  # of the folded model
    centred: bool
    """Whether a bias absorbs the mean of what is lost."""
    curvature: Tensor | float = 0.0  # (g, O, O)
    total: Tensor | float = 0.0  # (g, K)
    squares: Tensor | float = 0.0  # (g, K, K)
    rows: int = 0

    @property
    def regression(self) -> bool:
        """Whether the layer is one regression: its inputs are rows, and it runs once."""
        return self.rows > 0

    @property
    def mean(self) -> Tensor:
        """Mean input, `(g, K)`; zeros where nothing absorbs it."""
        return self.total / self.rows * self.centred  # type: ignore[operator, return-value]

    def columns(self) -> Tensor:
        """Return the weight as `(g, K, O)`; where the layer is no regression, all that an input meets is one row."""
        whole = columns_of(self.call, self.weight) if self.regression else self.weight.flatten(1)[None]
        return whole.double()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the inverse covariance and the curvature; where the layer is no regression, nothing takes over."""
        if not self.regression:
            plain = [torch.eye(size).double()[None].to(self.weight.device) for size in self.weight.flatten(1).shape]
            return plain[0], plain[1]
        mean = self.mean
        covariance = self.squares / self.rows - mean[:, :, None] * mean[:, None, :]  # type: ignore[operator]
        return inverse(covariance), self.curvature  # type: ignore[return-value]

    def places(self, positions: Tensor) -> Tensor:
        """Return the rows of `columns` that belong to positions `(U, m)` along the input axis, `(U, m')`."""
        if not (self.regression and isinstance(self.call, Convolution)):
            return positions
        size = self.weight[0, 0].numel()
        return (positions[:, :, None] * size + torch.arange(size, device=positions.device)).flatten(1)


class _MomentMode(TapMode):
    """Adds up covariances of inputs and curvatures of outputs."""

    def __init__(self, problem: Problem, layers: dict[str, _Layer]) -> None:
        super().__init__(problem.folded, problem.want, 1)
        self._layers = layers

    def on_call(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        """Add the inputs of a layer at random positions."""
        x, weight, bias = (None if tensor is None else tensor.detach() for tensor in arguments)
        assert x is not None
        assert weight is not None
        layer = self._layers.setdefault(name, _Layer(call=call, weight=weight, centred=bias is not None))
        out = super().on_call(name, call, arguments)
        if name not in self._want.repeated and not (isinstance(call, Convolution) and call.transposed):
            count = len(rows_of(call, out))
            keep = torch.randperm(count)[: min(count, ROWS_PER_SAMPLE * self.samples)].sort().values.to(x.device)
            rows = design(call, x, weight, keep).transpose(0, 1)
            layer.total = layer.total + rows.sum(1).double()
            layer.squares = layer.squares + (rows.mT @ rows).double()
            layer.rows += len(keep)
        return out

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:  # noqa: ARG002
        """Add the curvature that one draw shows."""
        layer = self._layers[site.name]
        if layer.regression:
            groups = columns_of(site.call, weight).shape[0]
            rows = rows_of(site.call, delta).unflatten(1, (groups, -1)).transpose(0, 1)
            layer.curvature = layer.curvature + (rows.mT @ rows).double()


def _measure_layers(problem: Problem, seed: int) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    total = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for mode, cotangents, weight in _passes(
            problem, range(1), seed, lambda: _MomentMode(problem, layers), "inputs"
        ):
            total += weight
            for cotangent in cotangents:
                mode.push_back(cotangent)
    for layer in layers.values():
        layer.curvature = layer.curvature / total
    return layers


@dataclass(frozen=True, kw_only=True)
class _Path:
    """The elimination of one key's units, with the changed weights at some levels."""

    order: list[int]
    levels: list[int]
    """Numbers of units gone."""
    changes: Mapping[str, Tensor]
    """For each weight `(levels, numel)`."""


def _eliminate(problem: Problem, layers: Mapping[str, _Layer]) -> dict[str, _Path]:
    pairs = sum(layers[piece.param].weight.numel() for pieces in problem.want.slices.values() for piece in pieces)
    levels = max(4, min(LEVELS, CHANGES_BYTES // max(1, 4 * pairs)))
    statistics = {name: layer.statistics() for name, layer in layers.items()}
    return {key: _path(pieces, layers, statistics, levels) for key, pieces in problem.want.slices.items()}


def _path(
    pieces: Any, layers: Mapping[str, _Layer], statistics: Mapping[str, tuple[Tensor, Tensor]], levels: int
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
        unit = int(left[losses.argmin()])
        for reader in readers.values():
            reader.remove(unit)
        left = left[left != unit]
        order.append(unit)
        for name, reader in readers.items() if len(order) in stops else ():
            layer = layers[name]
            change = weight_from(layer.call, reader.change, layer.weight) if layer.regression else reader.change[0]
            changes[name].append(change.to(layer.weight.dtype).flatten())
    return _Path(order=order, levels=stops, changes={name: torch.stack(rows) for name, rows in changes.items()})


class _EffectMode(TapMode):
    """Sums over layers what changed weights do to each sample, in the direction of a draw."""

    def __init__(self, problem: Problem, layers: Mapping[str, _Layer], paths: Mapping[str, _Path]) -> None:
        super().__init__(problem.folded, problem.want, 1)
        self._layers = layers
        self._paths = paths
        self.effects: dict[str, Tensor | float] = {}

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Multiply per-sample gradients with the changes."""
        layer, gradients = self._layers[site.name], self._gradients(site, x, weight, delta)
        if layer.regression and layer.centred:
            gradients = gradients - self._constant(layer, weight, delta)
        for key, path in self._paths.items():
            if site.name in path.changes:
                self.effects[key] = self.effects.get(key, 0.0) + gradients.flatten(1) @ path.changes[site.name].T

    def _constant(self, layer: _Layer, weight: Tensor, delta: Tensor) -> Tensor:
        """Return the part of the gradients that a mean input accounts for."""
        mean, rows = layer.mean.to(delta.dtype), rows_of(layer.call, delta)
        sums = rows.view(self.samples, -1, len(mean), rows.shape[1] // len(mean)).sum(1)  # (N, g, O)
        outer = torch.einsum("ngo,gk->ngko", sums, mean)
        return torch.stack([weight_from(layer.call, one, weight) for one in outer])


def _measure_changes(
    problem: Problem, layers: Mapping[str, _Layer], paths: Mapping[str, _Path], draws: range, seed: int
) -> dict[str, Tensor]:
    """Return for each key the loss at its levels."""
    squares = {key: torch.zeros(len(path.levels), dtype=torch.float64) for key, path in paths.items()}
    total = 0.0
    for mode, cotangents, weight in _passes(
        problem, draws, seed, lambda: _EffectMode(problem, layers, paths), "repair"
    ):
        total += weight
        for cotangent in cotangents:
            mode.effects.clear()
            mode.push_back(cotangent)
            for key, effect in mode.effects.items():
                squares[key] += effect.double().square().sum(0).cpu()
    return {key: value / (2 * len(draws) * total) for key, value in squares.items()}


def _passes(
    problem: Problem, draws: range, seed: int, make: Any, label: str
) -> Iterator[tuple[Any, list[Tensor], float]]:
    """Run every chunk forward in a mode of its own; yield it with one logit vector per draw, and the chunk's weight."""
    position = 0
    for inputs, targets in problem.each_batch(label):
        for rows in problem.chunks(len(targets)):
            mode = make()
            with problem.precision.casting(problem.device):
                mode.forward(sample_rows(inputs, rows))
            factor = logit_factor(problem.loss_fn, check_finite(mode.logits), targets[rows])
            every, size = torch.arange(len(rows), device=rows.device), factor.mass.shape[1]
            yield mode, [factor.draw(every, signs(seed, draw, position + rows, size)) for draw in draws], factor.weight
            mode.close()
        position += len(targets)


def _interpolated(path: _Path, losses: Tensor) -> Repair:
    counts = np.arange(1, len(path.order) + 1)
    values = np.interp(counts, [0, *path.levels], [0.0, *losses.tolist()])
    return Repair(order=torch.tensor(path.order), loss=torch.from_numpy(values))
