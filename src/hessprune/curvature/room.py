"""The memory and the time that an elimination will take, stated before it begins, and the room for its statistics."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Problem
from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import bytes_text, duration_text
from hessprune.foundation.machine import free_bytes
from hessprune.foundation.processes import num_processes
from hessprune.foundation.shelf import Shelf, free_disk
from hessprune.layers.regression import columns_of
from hessprune.operators.maps import Convolution

_log = logging.getLogger(__name__)
FREE_SHARE = 0.5
"""Share of the free memory that is used where no limit is given."""
PROBE = 768
"""Size of a matrix product by which the machine is timed."""
PASSES = 3 + 11
"""Forward passes that a sample takes: forward and backward, then as much again and ten backward passes for some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Bytes in memory and in files, and seconds; without seconds where the number of samples is not known."""

    in_memory: int
    in_files: int
    seconds: float | None

    def __str__(self) -> str:
        """Return one line, such as `estimated: 3.1 GB, 4 min`."""
        parts = [bytes_text(self.in_memory)]
        parts += [f"{bytes_text(self.in_files)} in files"] if self.in_files else []
        parts += [] if self.seconds is None else [duration_text(self.seconds)]
        return f"estimated: {', '.join(parts)}"


def statistics_sizes(problem: Problem) -> dict[str, tuple[int, int, int]]:
    """Return groups, inputs and outputs `(g, K, O)` of each layer that reads units, by weight."""
    uses = {use.weight: use.call for use in problem.folded.recording.uses if use.weight in problem.readout.axes}
    model = problem.folded.model
    return {
        name: tuple(columns_of(call, model.get_parameter(name)).shape)  # type: ignore[misc]
        for name, call in uses.items()
        if not (isinstance(call, Convolution) and call.transposed)
    }


def estimated(problem: Problem, limit: int, changes: int) -> Estimate:
    """Return what an elimination takes, in memory up to a limit.

    All layers hold `8 (K² + O²)` bytes at once. One after another, a layer takes its inverse covariance twice, and a
    table of the size of one. Changed weights, `changes` bytes, are kept until the end.
    """
    sizes = statistics_sizes(problem)
    held = sum(8 * g * (k * k + o * o) for g, k, o in sizes.values())
    working = max((8 * g * k * (3 * k + 2 * o) for g, k, o in sizes.values()), default=0)
    peak, samples = problem.peak_bytes + held + working + changes, problem.num_samples
    most = max(limit, problem.peak_bytes) if problem.device.type == "cpu" else peak  # files hold no tensors of GPUs
    return Estimate(
        in_memory=min(peak, most),
        in_files=max(0, peak - most),
        seconds=None if samples is None else _seconds(problem, sizes, samples),
    )


def _seconds(problem: Problem, sizes: Mapping[str, tuple[int, int, int]], samples: int) -> float:
    """Add the passes, at the speed of the forward pass that was timed, and the elimination, at that of a product."""
    operations = sum(3 * g * k**3 + 4 * g * k * k * o for g, k, o in sizes.values())
    probe = torch.ones(PROBE, PROBE, dtype=torch.float64, device=problem.device)
    torch.mm(probe, probe)  # the first product of a process also starts threads
    started = time.perf_counter()
    float((probe @ probe)[0, 0])
    return samples / num_processes() * PASSES * problem.seconds_per_sample + operations / (2 * PROBE**3) * (
        time.perf_counter() - started
    )


def room_for(problem: Problem, options: TraceOptions, changes: int) -> tuple[Shelf, Estimate]:
    """Return the shelf for an elimination's statistics, and say what it will take.

    Raises:
        ArgumentError: Neither the limit nor the disk holds the statistics.
    """
    limit = options.memory_limit or int(FREE_SHARE * free_bytes(problem.device))
    estimate = estimated(problem, limit, changes)
    if estimate.in_files > (room := free_disk()):
        needed = 2 * max(estimate.in_memory + estimate.in_files - problem.peak_bytes, problem.peak_bytes)
        raise ArgumentError(
            f"`memory_limit` must hold statistics for which the temporary folder has no room, got {limit}, and "
            f"{estimate.in_files} bytes more where {room} are free. Write memory_limit={needed}, or free the disk."
        )
    _log.info("elimination: %s", estimate)
    return Shelf(max(0, limit - problem.peak_bytes)), estimate
