"""Repeat a step hundreds of times: on a GPU as a recorded CUDA graph, elsewhere as it is.

A probe consists of thousands of small kernels, and the host of a GPU takes longer to launch them than the GPU to run
them. A CUDA graph launches all kernels at once. Only the contents of the input may differ between repetitions.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_WORTH = 8
"""Fewest steps that are recorded: a recording takes as long as a few steps."""

Step = Callable[[Tensor], Tensor]
"""A function from the index of a probe, an int64 tensor `()`, to the probe's result."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, work on a new stream: work on the default stream cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    outer, inner = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    inner.wait_stream(outer)
    with torch.cuda.stream(inner):
        yield
    outer.wait_stream(inner)


def repeated(step: Step, number: int, device: torch.device) -> Step:
    """Return the fastest form of `step` for `number` repetitions on `device`."""
    if device.type != "cuda" or number < _WORTH:
        return step
    return Replayed(step, record_graph)


class Replayed:
    """Runs a step once, records it, and replays the recording if this gives the same result."""

    def __init__(self, step: Step, record: Callable[[Step, Tensor], Step]) -> None:
        self._step: Step = step
        self._record = record
        self._pending = True

    def __call__(self, index: Tensor) -> Tensor:
        """Return the step's result."""
        result = self._step(index)
        if self._pending and bool(torch.isfinite(result).all()):  # an overflow is repeated at another scale
            self._pending = False
            self._step = self._recorded(index, result)
        return result

    def _recorded(self, index: Tensor, expected: Tensor) -> Step:
        """Return the recording, or the step itself if it cannot be recorded or the recording gives another result."""
        try:
            replay = self._record(self._step, index)
            if torch.allclose(replay(index), expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
                return replay
            reason = "the recording gives other numbers"
        except RuntimeError as error:
            reason = str(error).split("\n", 1)[0]
        _log.info("probes run without a CUDA graph: %s", reason)
        return self._step


def record_graph(step: Step, index: Tensor) -> Step:
    """Record `step`, which has run once on the current stream, as a CUDA graph there."""
    graph, place = torch.cuda.CUDAGraph(), index.clone()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(index.device)):
        result = step(place)

    def replay(index: Tensor) -> Tensor:
        place.copy_(index)
        graph.replay()
        return result.clone()

    return replay
