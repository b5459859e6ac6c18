"""Memory of one sample, and the number of samples in a chunk."""

import math

import torch

from hessprune.curvature.options import TraceOptions
from hessprune.curvature.precision import Precision
from hessprune.curvature.readout import Readout
from hessprune.errors import ArgumentError
from hessprune.layers.folding import Folded
from hessprune.layers.per_sample import sizes_of

_CACHE_BYTES = {"exact": 192 << 20, "rademacher": 192 << 20, "hutchinson": 576 << 20}
"""On a CPU the working set of a chunk should have about the size of the last-level cache (24 to 84 CIFAR images)."""
_LAYER_BYTES = 8 << 20
"""On a CPU the input and output of one layer of a chunk should fit into the last-level cache."""
_FEW_BYTES = 1 << 30
"""On a CPU a chunk of up to four samples may take as much; long texts come one by one."""
_RETAINED = {"exact": 1.0, "rademacher": 1.0, "hutchinson": 3.0}
"""Copies of the activations that an estimator keeps: one for a graph, three for the graph of a gradient."""
_MARGIN = 1.15
"""Factor for memory that kernels allocate inside (measured)."""
_COLUMNS = 10
"""Number of columns that decides, in this estimate, if a layer keeps Gram matrices."""


def largest_layer(folded: Folded, precision: Precision) -> int:
    """Return the bytes of one sample's input and output, for the layer with the largest."""
    shapes = ((use.input_shape, use.output_shape) for use in folded.recording.uses)
    return max((sum(map(math.prod, pair)) // 2 for pair in shapes), default=0) * precision.dtype.itemsize


def bytes_per_sample(folded: Folded, readout: Readout, estimator: str, precision: Precision) -> int:
    """Return an upper estimate of the bytes that one more sample adds to a chunk."""
    width = precision.dtype.itemsize
    uses = [use for use in folded.recording.uses if use.weight in readout.axes]
    sizes = [sizes_of(use, folded.model.get_parameter(use.weight)) for use in uses]
    kept = sum(s.positions**2 for s in sizes if s.positions > 1 and s.prefers_gram(_COLUMNS))
    working = max((s.gradient * 2 + s.positions * (s.patch + 2 * s.outputs) for s in sizes), default=0)
    activations = folded.recording.bytes_per_sample * width // 4
    return int(_MARGIN * (activations * _RETAINED[estimator] + (kept + working) * width))


def chunk_size(per_sample: int, layer: int, options: TraceOptions, *, device: torch.device, estimator: str) -> int:
    """Return the number of samples in a chunk, from the bytes of one sample and of its largest layer.

    Raises:
        ArgumentError: Not even one sample fits the memory limit.
    """
    limit = options.memory_limit
    if limit is not None and limit < per_sample:
        raise ArgumentError(
            f"`memory_limit` must hold the activations of one sample, about {per_sample} bytes, got {limit}. "
            "Raise it, or use smaller inputs."
        )
    cached = min(_CACHE_BYTES[estimator] // max(per_sample, 1), _LAYER_BYTES // max(layer, 1))
    fitting = max(min(4, _FEW_BYTES // max(per_sample, 1)), cached, 1) if device.type == "cpu" else 1 << 20
    chunk = options.chunk_size or fitting
    return chunk if limit is None else min(chunk, max(1, int(limit * options.activations) // per_sample))
