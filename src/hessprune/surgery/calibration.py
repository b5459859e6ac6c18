"""Calibration samples in memory: batches of equal shape joined, others side by side."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.batches import Rereadable
from hessprune.foundation.identity import content_sha256
from hessprune.foundation.modules import device_of
from hessprune.foundation.texts import word_masks
from hessprune.foundation.trees import (
    describe_shapes,
    join_inputs,
    leading_size,
    sample_rows,
    shared_in,
    tensors_in,
    to_device,
)
from hessprune.layers.recording import Recording, record

MEMORY = 2 << 30
"""Bytes of activations that one forward pass may hold; calibration samples beyond that are not read."""
LIVE = 4
"""Memory of a forward pass, in multiples of the largest input and output of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Samples that a model takes in one call."""

    inputs: Any
    targets: Any
    places: Tensor
    """Their places in the data, `(N,)`."""
    apart: bool = True
    """False if a row of the targets is not that of a sample."""
    masks: Mapping[int, Tensor] = field(default_factory=dict)
    """The positions of texts `(N, T)` that hold words and not padding, by `T`."""

    def __len__(self) -> int:
        return len(self.places)

    def only(self, mask: Tensor) -> "Samples":
        """Return the samples of a mask over places."""
        return self.rows(mask[self.places].nonzero().squeeze(1))

    def rows(self, rows: Tensor) -> "Samples":
        """Return some samples, with their targets if there is one entry for each sample."""
        targets = sample_rows(self.targets, rows) if self.can_be_split and self.targets is not None else self.targets
        masks = {length: mask[rows.to(mask.device)] for length, mask in self.masks.items()}
        inputs = sample_rows(self.inputs, rows)
        return replace(self, inputs=inputs, targets=targets, places=self.places[rows], masks=masks)

    @property
    def can_be_split(self) -> bool:
        """True if the targets hold one entry for each sample."""
        tensors = list(tensors_in(self.targets))
        by_row = bool(tensors) and all(t.dim() and len(t) == len(self) for t in tensors)
        return self.targets is None or (self.apart and by_row)


def gather(
    batches: Rereadable,
    model: nn.Module,
    most: Callable[[nn.Module, Any], int] | None = None,
    splits: Callable[[Any, Any], bool] | None = None,
) -> list[Samples]:
    """Read calibration samples until memory is full, and join batches of equal shape.

    Args:
        batches: The data.
        model: The model that runs on them.
        most: Returns how many samples of a batch fit into one forward pass of it; of the whole model if None.
        splits: Returns whether the targets of a batch with as many rows as samples belong to these; asked once, of two
            samples at least.
    """
    apart: bool | None = None
    most = most or most_samples
    read: list[Samples] = []
    limit, spent, place, device = 0.0, 0.0, 0, device_of(model)
    for inputs, targets in batches:
        count = leading_size(inputs)
        size = _numbers_of(inputs) / count
        limit = limit or most(model, to_device(inputs, device)) * size
        places, masks = place + torch.arange(count, device="cpu"), word_masks(model, inputs, count)
        samples = Samples(inputs=inputs, targets=targets, places=places, masks=masks)
        if splits is not None and targets is not None and samples.can_be_split and apart is None:
            apart = _come_apart(splits, read, samples)
        samples = replace(samples, apart=apart is not False)
        room = max(2, int((limit - spent) / size))
        if room < count and samples.can_be_split:
            samples = samples.rows(torch.arange(room, device="cpu"))
        read.append(samples)
        place, spent = place + count, spent + size * len(samples)
        if spent >= limit:
            break
    kinds: dict[str, list[Samples]] = {}
    for number, samples in enumerate(read):
        samples = replace(samples, apart=apart is not False)
        kinds.setdefault(_kind(samples) if samples.can_be_split else str(number), []).append(samples)
    return [_joined(parts, device) for parts in kinds.values()]


def _come_apart(splits: Callable[[Any, Any], bool], read: Sequence[Samples], samples: Samples) -> bool | None:
    """Return what `splits` says of some samples, or of single ones of the last batches; None while there is one."""
    if len(samples) > 1:
        return splits(samples.inputs, samples.targets)
    if not read or _kind(read[-1]) != _kind(samples):
        return None
    pair = _joined([read[-1], samples], torch.device("cpu"))
    return splits(pair.inputs, pair.targets)


def _kind(samples: Samples) -> str:
    """Return what is equal for samples that can be joined."""
    common = shared_in(samples.inputs)
    shapes = describe_shapes((samples.inputs, samples.targets))
    return shapes + content_sha256(common) if common else shapes


def _joined(parts: Sequence[Samples], device: torch.device) -> Samples:
    whole = parts[0]
    if len(parts) > 1:
        inputs, targets = (join_inputs([getattr(part, name) for part in parts]) for name in ("inputs", "targets"))
        masks = {length: torch.cat([part.masks[length] for part in parts]) for length in whole.masks}
        places = torch.cat([part.places for part in parts])
        whole = replace(whole, inputs=inputs, targets=targets, places=places, masks=masks)
    inputs, targets = to_device((whole.inputs, whole.targets), device)
    return replace(whole, inputs=inputs, targets=targets)


def judging(samples: Sequence[Samples]) -> list[Tensor]:
    """Return for each part which of its samples judge a fit, `(N,)` bool: every fifth of all, in the order of the data.

    Example:
        >>> parts = [torch.tensor([0, 7]), torch.tensor([1, 3, 4, 5, 6])]
        >>> [mask.tolist() for mask in judging([Samples(inputs=None, targets=None, places=part) for part in parts])]
        [[True, False], [False, False, False, False, True]]
    """
    ranks = torch.cat([part.places for part in samples]).argsort().argsort()
    return list((ranks % 5 == 0).split([len(part) for part in samples]))


def _numbers_of(inputs: Any) -> int:
    return sum(tensor.numel() for tensor in tensors_in(inputs))


def most_samples(model: nn.Module, inputs: Any) -> int:
    """Return the number of samples that one forward pass can hold, from a run on two samples."""
    return samples_in_memory(record(model, inputs))


def holds_few(model: nn.Module, batches: Rereadable) -> bool:
    """Return whether one forward pass holds less than half of the samples, as `gather` reads them."""
    most = seen = 0
    for inputs, _ in batches:
        most = most or 2 * most_samples(model, to_device(inputs, device_of(model)))
        seen += leading_size(inputs)
        if seen > most:
            return True
    return False


def behind(batches: Rereadable, seen: int, *, size: int, number: int) -> Iterator[tuple[Any, Any]]:
    """Yield inputs and targets of samples behind the first ones, in parts; none where they cannot be told apart.

    Args:
        batches: The data.
        seen: Samples that are left out.
        size: Most samples of a part whose targets can be split.
        number: Samples, at least where there are so many.
    """
    place, left = 0, number
    for inputs, targets in batches:
        count = leading_size(inputs)
        samples = Samples(inputs=inputs, targets=targets, places=place + torch.arange(count, device="cpu"))
        rows, place = torch.arange(min(count, max(0, seen - place)), count, device="cpu"), place + count
        for few in rows.split(size if samples.can_be_split else count):
            if len(few) and left > 0 and (samples.can_be_split or len(few) == count):
                part = samples.rows(few)
                left -= len(part)
                yield part.inputs, part.targets
        if left <= 0:
            return


def samples_in_memory(recording: Recording) -> int:
    """Return the number of samples that one forward pass can hold."""
    uses = recording.uses
    largest = max((math.prod(use.input_shape) + math.prod(use.output_shape) for use in uses), default=2) // 2
    return max(2, MEMORY // (4 * LIVE * max(1, largest)))
