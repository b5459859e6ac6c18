"""The scoring problem of every estimator: folded model, readout, data, loss and device."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hessprune.curvature.ggn import TapMode
from hessprune.curvature.memory import bytes_per_sample, chunk_size, largest_layer
from hessprune.curvature.options import DEFAULT_TOLERANCE, TraceOptions
from hessprune.curvature.precision import Precision, resolve
from hessprune.curvature.readout import Readout, read_out
from hessprune.curvature.results import Kind, Slices
from hessprune.errors import ArgumentError, NumericalError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches, check_finite_parameters
from hessprune.foundation.modules import call_model, device_of, forward, to_dtype
from hessprune.foundation.processes import is_own
from hessprune.foundation.progress import track
from hessprune.foundation.sharded import is_sharded
from hessprune.foundation.trees import leading_size, sample_rows, to_device
from hessprune.layers.folding import Folded, fold_batchnorm
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.objective import BatchLoss, Objective

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Estimator, number format and options of a scoring problem."""

    estimator: str
    precision: str
    options: TraceOptions


class Place(NamedTuple):
    """The place of a batch in the data."""

    number: int
    position: int
    """The number of samples before it."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A folded model, the readout at its weights, and the data."""

    folded: Folded
    readout: Readout
    batches: Any
    objective: Objective
    precision: Precision
    tolerance: float
    device: torch.device
    chunk_size: int
    peak_bytes: int
    """Estimate for one chunk of the first batch."""
    seconds_per_sample: float
    """Of a forward pass."""
    note: str
    """Text beside the progress of a pass, such as an estimate of its memory."""

    @property
    def num_samples(self) -> int | None:
        """Samples in all batches, as far as the first batch and their number tell."""
        if self.batches.num_samples:
            return self.batches.num_samples
        try:
            return len(self.batches.batches) * leading_size(next(iter(self.batches))[0])
        except TypeError:  # a number that is not known
            return None

    @property
    def kind(self) -> Kind:
        """`"hessian"` where Gauss–Newton blocks equal the Hessian's at every weight of the readout, else `"ggn"`."""
        names = set(self.readout.axes)
        return "ggn" if names & self.folded.recording.smooth or names & self.readout.repeated else "hessian"

    def each_batch(
        self, label: str, *, everywhere: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Place, Any, BatchLoss]]:
        """Yield place, inputs on the device and loss of each batch of this process; report progress and memory.

        While `everywhere` is true, the batches of other processes come, too.
        """
        _log.info("%s: %s", label, self.note)
        position = 0
        for number, (inputs, targets) in enumerate(track(self.batches, label, note=self.note)):
            place, position = Place(number, position), position + leading_size(inputs)
            if not is_own(number) and not everywhere():
                continue
            inputs, targets = (to_device(part, self.device, self.precision.dtype) for part in (inputs, targets))
            loss = self.objective.on(inputs, targets, leading_size(inputs))
            if loss.needs_outputs:
                outputs, values = self._outputs(inputs)
                loss.see(outputs, check_finite(values.to(self.precision.dtype)))
            yield place, inputs, loss

    def values(self, inputs: Any, loss: BatchLoss) -> Tensor:
        """Return the values that the objective reads of a batch, chunk by chunk.

        Raises:
            NumericalError: Values are not finite.
        """
        return check_finite(self._outputs(inputs)[1] if loss.seen is None else loss.seen)

    @torch.no_grad()
    def _outputs(self, inputs: Any) -> tuple[list[tuple[Any, int]], Tensor]:
        """Return the outputs of each chunk with its number of samples, and the values of the batch."""
        with self.precision.casting(self.device):
            parts = self.chunks(leading_size(inputs))
            chunks = [sample_rows(inputs, part) for part in parts]
            outputs = [(forward(self.folded.model, few), len(part)) for few, part in zip(chunks, parts, strict=True)]
        read = self.objective.read
        values = [read(*output, few) for output, few in zip(outputs, chunks, strict=True)]
        return outputs, torch.cat(values)

    def chunks(self, samples: int) -> tuple[Tensor, ...]:
        """Return the indices of the samples of each chunk."""
        return self.split(torch.arange(samples, device=self.device))

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split indices of samples into chunks; none where there are no samples."""
        return rows.split(self.chunk_size) if len(rows) else ()

    @contextmanager
    def tap(self, inputs: Any, rows: Tensor, columns: int) -> Iterator[TapMode]:
        """Run the samples `rows` forward, ready for backward passes; drop the graph on exit."""
        tap = TapMode(self.folded, self.readout, columns, self.objective.read)
        try:
            with self.precision.casting(self.device):
                tap.forward(sample_rows(inputs, rows))
            yield tap
        finally:
            tap.close()

    def push(self, tap: TapMode, cotangent: Tensor) -> Tensor:
        """Push one vector per sample back; return `(N, num_units)` squared norms in float64."""
        return self.precision.finite(lambda scale: tap.backward(cotangent * scale) / scale**2)


def check_finite(values: Tensor) -> Tensor:
    """Return the values.

    Raises:
        NumericalError: Values are not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise NumericalError("the model's outputs must be finite, got NaN or infinity. Check weights and inputs.")
    return values


@torch.no_grad()
def check_repeats(model: nn.Module, objective: Objective, inputs: Any) -> float:
    """Raise unless a model computes the same values for a sample alone and beside another sample.

    Returns:
        Seconds of the forward pass of one sample.

    Raises:
        NumericalError: The values differ: the model is random, or its samples influence each other.
    """
    two, one = (sample_rows(inputs, torch.tensor(rows, device="cpu")) for rows in ([0, -1], [0]))
    pair = objective.read(call_model(model, two), 2, two)[:1]
    started = time.perf_counter()
    alone = objective.read(call_model(model, one), 1, one)[:1]
    seconds = time.perf_counter() - started
    check_finite(pair)
    if not torch.allclose(pair, alone, rtol=1e-2, atol=1e-2 * float(pair.abs().max())):
        raise NumericalError(
            "the model must repeat its outputs in evaluation mode, got different ones for the same samples. Likely "
            "causes: (a) it draws random numbers in `forward`, (b) its samples influence each other. Do so only if "
            "self.training."
        )
    return seconds


def _of_shards(model: nn.Module, precision: Precision) -> Precision:
    """Return the number formats for a sharded model, whose weights stay in the format that they have.

    Raises:
        ArgumentError: More digits are asked for than the weights have.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), precision.dtype)
    if precision.name == "fp64" and dtype != torch.float64:
        raise ArgumentError(
            f"`precision` must be that of a sharded model's weights, got {precision.name!r} for {dtype}. "
            "Convert the model before fully_shard, or leave `precision` out."
        )
    return replace(precision, dtype=dtype, autocast=None if dtype.itemsize == 2 else precision.autocast)


def pose(model: nn.Module, slices: Slices, batches: Any, *, loss_fn: Any, effort: Effort) -> Problem:
    """Check the arguments, fold a copy of `model`, match the slices to its weights, and plan the memory."""
    batches = Rereadable.of(batches, model)
    check_batches(batches)
    check_finite_parameters(model)
    device = device_of(model)
    precision = resolve(effort.precision, device)
    inputs = to_device(next(iter(batches))[0], device)
    objective = choose_objective(model, batches, loss_fn, prefer="labels")
    folded = fold_batchnorm(model, inputs)
    seconds = check_repeats(folded.model, objective, inputs)
    if is_sharded(model):
        precision = _of_shards(model, precision)
    else:
        to_dtype(folded.model, precision.dtype)
    readout = read_out(model, slices, folded)
    per_sample = bytes_per_sample(folded, readout, effort.estimator, precision)
    layer = largest_layer(folded, precision)
    chunk = chunk_size(per_sample, layer, effort.options, device=device, estimator=effort.estimator)
    chunk = 1 if folded.recording.routed else chunk
    default = 0.0 if precision.dtype == torch.float64 else DEFAULT_TOLERANCE[effort.estimator]
    return Problem(
        folded=folded,
        readout=readout,
        batches=batches,
        objective=objective.typed(device, precision.dtype),
        precision=precision,
        tolerance=default if effort.options.tolerance is None else effort.options.tolerance,
        device=device,
        chunk_size=chunk,
        peak_bytes=(peak := min(chunk, leading_size(inputs)) * per_sample),
        seconds_per_sample=seconds,
        note=f"about {peak / 1e6:.0f} MB",
    )
