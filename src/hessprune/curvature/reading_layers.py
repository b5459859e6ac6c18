"""Statistics of the layers that read units: moments of their inputs, and the loss curvature in their outputs.

One pass over the data measures both. Every random choice depends on the seed, the layer and the sample's place in the
data alone, so that the statistics do not depend on batches or chunks beyond rounding.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.draws import sampled, signs
from hessprune.curvature.elimination import inverse
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, Problem, check_finite, pose
from hessprune.curvature.results import Slices
from hessprune.curvature.squares import PANEL, Squares
from hessprune.foundation.processes import check_agreement, is_own, num_processes, summed, summed_numbers
from hessprune.foundation.shelf import Shelf
from hessprune.foundation.texts import word_masks
from hessprune.foundation.trees import sample_rows
from hessprune.layers.input_moments import InputMoments
from hessprune.layers.regression import columns_of, design, rows_by_sample, rows_of, word_rows
from hessprune.objectives.objective import check_weight
from hessprune.operators.maps import Arguments, Convolution, LinearMap

ROWS_PER_SAMPLE = 256
"""Most positions of each sample that enter the covariance of a layer's inputs."""
WIDE, ROWS_PER_INPUT = 1024, 8
"""A layer of so many inputs takes no more positions than this multiple of them."""


@dataclass(kw_only=True)
class ReadingLayer:
    """A layer that reads units, with its statistics."""

    call: LinearMap
    weight: Tensor  # of the folded model
    centred: bool
    """True where a bias can absorb a change of the mean output."""
    shelf: Shelf = field(default_factory=Shelf, repr=False)
    """Holds the squares and the curvature."""
    rows: int = 0
    origin: Tensor | None = None  # (g, K): near the mean; sums of squares about it stay small
    total: Tensor | float = 0.0  # (g, K): sum of the inputs, about the origin
    squares: Tensor | None = None  # (g, K, K): sum of their outer products
    curvature: Tensor | None = None  # (g, O, O)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._inputs, self._outputs = Squares(self.shelf), Squares(self.shelf)

    def add_inputs(self, rows: Tensor) -> None:
        """Add inputs `(g, R, K)`; the first ones give the origin."""
        if not rows.shape[1]:
            return
        if self.origin is None:
            self.origin = rows.double().mean(1)
        rows = rows - self.origin[:, None].to(rows.dtype)
        self.total = self.total + rows.sum(1).double()
        self.rows += rows.shape[1]
        self._inputs.add(rows)

    def add_gradients(self, rows: Tensor) -> None:
        """Add gradients at the output, `(g, R, O)`."""
        self._outputs.add(rows)

    @property
    def regression(self) -> bool:
        """True for a layer that a refit adapts on rows of inputs, those of all its uses.

        Transposed convolutions and experts that receive some rows are none.
        """
        return self.rows > 0

    @property
    def mean(self) -> Tensor:
        """Mean input, `(g, K)`; zeros where no bias absorbs it."""
        return self._mean()[:, :, 0] * self.centred

    def at_mean(self, columns: Tensor) -> Tensor:
        """Return what a matrix `(g, K, O)` makes of the mean input, one after another for all groups."""
        return (self.mean[:, None] @ columns).flatten() if self.regression else columns.new_zeros(())

    def columns(self) -> Tensor:
        """Return the weight as `(g, K, O)`; of a transposed convolution each row holds all that one input meets."""
        whole = self.weight.flatten(1)[None] if self.is_transposed else columns_of(self.call, self.weight)
        return whole.double()

    @property
    def is_transposed(self) -> bool:
        """True for a transposed convolution, whose weight has its inputs in front."""
        return isinstance(self.call, Convolution) and self.call.transposed

    def statistics(self) -> tuple[Tensor, Tensor | None]:
        """Return the inverse covariance and the curvature; the identity and None where the layer is no regression.

        The sums are used up: the inverse is computed in their place.
        """
        if not self.regression:
            groups, inputs = self.columns().shape[:2]
            return torch.eye(inputs, dtype=torch.float64, device=self.weight.device).repeat(groups, 1, 1), None
        covariance, mean = self.squares, self._mean()
        assert covariance is not None
        for part, rows in self._covariance():
            covariance[:, part] = rows if self.centred else rows + mean[:, part] * mean.mT
        self.squares = None
        return inverse(covariance, mean.squeeze(2), self.shelf), self._full_curvature()

    def moments(self) -> InputMoments:
        """Return the moments of the inputs, in single precision on the CPU."""
        mean = self._mean().squeeze(2)
        covariance = torch.empty(*mean.shape, mean.shape[1], device="cpu")
        for part, rows in self._covariance():
            covariance[:, part] = rows.float().cpu()
        return InputMoments(mean=mean.float().cpu(), covariance=covariance, rows=self.rows, biased=self.centred)

    def _mean(self) -> Tensor:
        """Return the mean input, `(g, K, 1)`."""
        return (self.origin + self.total / self.rows)[:, :, None]  # type: ignore[operator, index]

    def _covariance(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the covariance in panels, each from its own rows of the sums."""
        assert self.squares is not None
        offset = (self.total / self.rows)[:, :, None]  # type: ignore[index]
        for start in range(0, self.squares.shape[1], PANEL):
            part = slice(start, start + PANEL)
            yield part, self.squares[:, part] / self.rows - offset[:, part] * offset.mT

    def forget(self) -> None:
        """Start the sums anew, about the same origin."""
        self.total, self.rows = 0.0, 0
        self._start()

    def finish(self, weight: float) -> None:
        """Add up the sums of all processes, and divide the curvature by the weight of all samples."""
        self.squares, self.curvature = self._inputs.total(), self._outputs.total()
        self._start()
        if num_processes() > 1 and self.origin is not None:
            total = self.total if isinstance(self.total, Tensor) else torch.zeros_like(self.origin)
            squares = self._zeros(self.origin.shape[1]) if self.squares is None else self.squares
            self.total, self.squares = summed(total), summed(squares)
            self.curvature = summed(self._full_curvature())
            self.rows = round(summed_numbers(self.rows)[0])
        if self.curvature is not None:
            self.curvature /= weight

    def _full_curvature(self) -> Tensor:
        """Return the curvature; zeros where nothing that counts depends on the layer."""
        outputs = columns_of(self.call, self.weight).shape[2]
        return self._zeros(outputs) if self.curvature is None else self.curvature

    def _zeros(self, size: int) -> Tensor:
        groups = len(columns_of(self.call, self.weight))
        return self.shelf.zeros(groups, size, size, device=self.weight.device)

    def places(self, positions: Tensor) -> Tensor:
        """Return the rows of `columns` for positions `(U, m)` along the input axis, `(U, m')`."""
        if self.is_transposed or not isinstance(self.call, Convolution):
            return positions
        size = self.weight[0, 0].numel()
        return (positions[:, :, None] * size + torch.arange(size, device=positions.device)).flatten(1)


class _StatisticsMode(TapMode):
    """Adds up moments of inputs and curvatures of outputs for one chunk of samples."""

    def __init__(
        self, problem: Problem, layers: dict[str, ReadingLayer], seed: int, places: Tensor, inputs: Any, shelf: Shelf
    ) -> None:
        super().__init__(problem.folded, problem.readout, 1, problem.objective.read)
        self._layers, self._shelf = layers, shelf
        self._unfit = problem.folded.recording.unfit  # which no refit will adapt
        self._seed, self._places = seed, places  # of the samples in the whole data
        self._masks = word_masks(problem.folded.model, inputs, len(places))
        self._in_all = problem.batches.num_samples  # known before where a layer is wide

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Run a layer, and add its inputs at random positions."""
        x, weight, bias = (None if tensor is None else tensor.detach() for tensor in arguments)
        assert x is not None
        assert weight is not None
        new = ReadingLayer(call=call, weight=weight, centred=bias is not None, shelf=self._shelf)
        layer = self._layers.setdefault(name, new)
        out = super().on_call(name, call, arguments)
        if not (name in self._unfit or (isinstance(call, Convolution) and call.transposed)):
            present = rows_by_sample(call, out, self.samples)
            words = word_rows(call, out, self._masks)
            own = [*present] if words is None else [rows[words[rows]] for rows in present]
            most, inputs = ROWS_PER_SAMPLE, columns_of(call, weight).shape[1]
            if inputs >= WIDE:
                most = min(most, math.ceil(ROWS_PER_INPUT * inputs / self._in_all))
            keep = sampled(self._seed, zlib.crc32(name.encode()), self._places, own, most)
            rows = design(call, x, weight, keep).transpose(0, 1).to(layer.weight.dtype)
            with torch.autocast(x.device.type, enabled=False):  # a forward may open a region of its own
                layer.add_inputs(rows)
        return out

    def arrive(self, site: Any, x: Tensor, weight: Tensor, delta: Tensor) -> None:  # noqa: ARG002
        """Add the outer products of the gradients at the layer's output."""
        if (layer := self._layers[site.name]).regression:
            groups = columns_of(site.call, weight).shape[0]
            rows = rows_of(site.call, delta).unflatten(1, (groups, -1)).transpose(0, 1)
            layer.add_gradients(rows.to(layer.weight.dtype))


def _is_wide(problem: Problem) -> bool:
    """Return whether a layer may have so many inputs that the number of samples matters."""
    names = {piece.param for pieces in problem.readout.slices.values() for piece in pieces}
    weights = [problem.folded.model.get_parameter(name) for name in names]
    return any(max(len(weight), weight[0].numel()) >= WIDE for weight in weights)  # of some, inputs lie along axis 0


def input_moments(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: Any = None,
    seed: int = 0,
    options: TraceOptions | None = None,
) -> dict[str, InputMoments]:
    """Return the moments of the inputs of each layer that reads units, by weight: one forward pass over all samples.

    Args:
        model: Any module; it is left as it was.
        slices: For each key the weights that read its units: slices along their input axis.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: Tells which samples count; None means cross-entropy.
        seed: For the positions at which inputs are sampled.
        options: Memory limit.

    Example:
        >>> import torch
        >>> from hessprune.curvature import ParamSlice
        >>> from hessprune.curvature.reading_layers import input_moments
        >>> inputs = {"x": [ParamSlice(param="weight", dim=1, index=torch.arange(3)[:, None])]}
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
        >>> input_moments(torch.nn.Linear(3, 2), inputs, [(x, torch.tensor([0, 1]))])["weight"].mean
        tensor([[2., 2., 2.]])
    """
    effort = Effort(estimator="rademacher", precision="fp32", options=options or TraceOptions())
    problem = pose(model, slices, batches, loss_fn=loss_fn, effort=effort)
    layers, _ = measure_reading_layers(problem, seed, curvature=False)
    return moments_of(layers)


def moments_of(layers: Mapping[str, ReadingLayer]) -> dict[str, InputMoments]:
    """Return the moments of the layers that are regressions."""
    return {name: layer.moments() for name, layer in layers.items() if layer.regression}


def measure_reading_layers(
    problem: Problem, seed: int, *, curvature: bool = True, shelf: Shelf | None = None
) -> tuple[dict[str, ReadingLayer], list[int]]:
    """Return the layers by weight, and for each batch the number of samples with weight in the loss.

    Takes one pass over the data, without gradients if no `curvature` is asked for. All processes see the first batch
    that counts, which gives the origins.
    """
    layers: dict[str, ReadingLayer] = {}
    total, counted, shelf = 0.0, {}, shelf or Shelf()
    if _is_wide(problem):
        problem.batches.count()
    for place, inputs, loss in problem.each_batch("inputs", everywhere=lambda: not layers):
        samples, own = loss.counted(), is_own(place.number)
        for rows in problem.split(samples)[: None if own else 1]:
            few = sample_rows(inputs, rows)
            mode = _StatisticsMode(problem, layers, seed, place.position + rows, few, shelf)
            with problem.precision.casting(problem.device):
                mode.forward(few)
            factor = loss.factor(check_finite(mode.values), rows)
            if curvature:
                noise = signs(seed, 0, place.position + rows, factor.mass.shape[1])
                mode.push_back(factor.draw(torch.arange(len(rows), device=rows.device), noise))
            total += factor.weight * own
            mode.close()
        if own:
            counted[place.number] = len(samples)
        else:
            for layer in layers.values():
                layer.forget()
    (total,) = summed_numbers(total)
    check_weight(total)
    check_agreement(zlib.crc32("".join(sorted(layers)).encode()), "the model must call the same layers in all batches")
    for name in sorted(layers):
        layers[name].finish(total)
    counts = torch.tensor([counted.get(number, 0) for number in range(problem.batches.num_batches)], device="cpu")
    return layers, summed(counts).tolist()
