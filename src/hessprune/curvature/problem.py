"""What every estimator works on: the folded model, the wanted rows, the data and the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune._checks import check_batches, check_finite_parameters, leading_size
from hessprune._modules import call_model, device_of, logits_of, sample_rows, to_device
from hessprune._progress import track
from hessprune.curvature.folding import Folded, fold_batchnorm
from hessprune.curvature.ggn import TapMode
from hessprune.curvature.readout import Wanted, wanted
from hessprune.curvature.results import Kind, Slices
from hessprune.curvature.risk import LossFn
from hessprune.errors import NumericalError

_CACHE_BYTES = {"cpu": 32 << 20}
"""Activations of one sample chunk should fit the last-level cache; accelerators take whole batches."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A folded model, what is wanted of it, and the data."""

    folded: Folded
    want: Wanted
    batches: Any
    loss_fn: LossFn | None
    dtype: torch.dtype
    device: torch.device
    chunk_size: int

    @property
    def kind(self) -> Kind:
        """Whether Gauss–Newton blocks equal the Hessian's for every wanted weight."""
        names = set(self.want.axes)
        return "ggn" if names & self.folded.recording.smooth or names & self.want.repeated else "hessian"

    def each_batch(self, label: str) -> Iterator[tuple[Any, Tensor]]:
        """Yield `(inputs, targets)` on the device, with progress."""
        for inputs, targets in track(self.batches, label):
            yield to_device(inputs, self.device, self.dtype), to_device(targets, self.device)

    @torch.no_grad()
    def logits(self, inputs: Any) -> Tensor:
        """Return the logits of a batch, chunk by chunk.

        Raises:
            NumericalError: They are not finite.
        """
        rows = torch.arange(leading_size(inputs), device=self.device)
        parts = [
            logits_of(call_model(self.folded.model, sample_rows(inputs, part))) for part in rows.split(self.chunk_size)
        ]
        logits = torch.cat(parts)
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError("the model's outputs must be finite, got NaN or infinity. Check weights and inputs.")
        return logits

    def tap(self, inputs: Any, rows: Tensor, expected: Tensor, columns: float) -> TapMode:
        """Run the samples `rows` forward, ready for backward passes.

        Raises:
            NumericalError: The model is not deterministic: it does not repeat the `expected` logits.
        """
        tap = TapMode(self.folded, self.want, columns)
        logits, expected = tap.forward(sample_rows(inputs, rows)).detach(), expected[rows]
        if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max())):
            raise NumericalError(
                "the model must repeat its outputs in evaluation mode, got different ones for the same samples. Likely "
                "causes: (a) it draws random numbers in `forward`, (b) its samples influence each other."
            )
        return tap


def pose(
    model: nn.Module,
    slices: Slices,
    batches: Any,
    *,
    loss_fn: LossFn | None,
    dtype: torch.dtype,
    chunk_size: int | None,
) -> Problem:
    """Check the inputs, fold a copy of `model`, and find out what it does with its weights."""
    check_batches(batches)
    check_finite_parameters(model)
    device = device_of(model)
    folded = fold_batchnorm(model, to_device(next(iter(batches))[0], device))
    folded.model.to(dtype)
    return Problem(
        folded=folded,
        want=wanted(slices, folded),
        batches=batches,
        loss_fn=loss_fn,
        dtype=dtype,
        device=device,
        chunk_size=chunk_size or _default_chunk(folded, device),
    )


def _default_chunk(folded: Folded, device: torch.device) -> int:
    if device.type not in _CACHE_BYTES:
        return 1 << 30
    return max(8, _CACHE_BYTES[device.type] // max(folded.recording.bytes_per_sample, 1))
