"""A step that is taken hundreds of times: on a GPU recorded as one graph, elsewhere run as it is.

A probe consists of thousands of small kernels, and launching them takes a GPU's host longer than running them. CUDA
graphs launch all of them at once. What is recorded must be the same every time but for the contents of its input.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_WORTH = 8
"""Recording takes as long as a few steps."""

Step = Callable[[Tensor], Tensor]
"""From the index of a probe, an int64 tensor `()`, to its result."""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On a GPU, work on a stream of its own: what runs on the default one cannot be recorded."""
    if device.type != "cuda":
        yield
        return
    outer, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(outer)
    with torch.cuda.stream(own):
        yield
    outer.wait_stream(own)


def repeated(step: Step, number: int, device: torch.device) -> Step:
    """Return `step` in the form in which `number` of them take the least time on `device`."""
    if device.type != "cuda" or number < _WORTH:
        return step
    return Replayed(step, record_graph)


class Replayed:
    """Runs a step once as it is, then records it, and replays the recording if it repeats what the step gave."""

    def __init__(self, step: Step, record: Callable[[Step, Tensor], Step]) -> None:
        self._step: Step = step
        self._record = record
        self._pending = True

    def __call__(self, index: Tensor) -> Tensor:
        """Return the step's result."""
        result = self._step(index)
        if self._pending and bool(torch.isfinite(result).all()):  # what overflowed is repeated at another scale
            self._pending = False
            self._step = self._recorded(index, result)
        return result

    def _recorded(self, index: Tensor, expected: Tensor) -> Step:
        """Return the recording, or the step itself where it cannot be recorded or the recording is not faithful."""
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
    """Record `step` as a CUDA graph on the current stream, after it has run once there."""
    graph, place = torch.cuda.CUDAGraph(), index.clone()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(index.device)):
        result = step(place)

    def replay(index: Tensor) -> Tensor:
        place.copy_(index)
        graph.replay()
        return result.clone()

    return replay
