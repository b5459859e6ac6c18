"""Several processes that train one model: each runs its rows of every batch, torch adds up the gradients.

A batch is the same whatever the number of processes, so a run that starts with two of them ends with four.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hessprune.foundation.processes import check_same, num_processes, rank, summed, whole
from hessprune.foundation.trees import leading_size, sample_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The rows of a batch that one process runs."""

    inputs: Any
    targets: Any
    rows: float = 1.0
    """Factor of a mean over these rows: the mean of such means over processes is that over the batch."""
    fraction: float = 1.0
    """Part of the batch's rows."""


class Team:
    """The processes that train a model together, or the one that trains it alone."""

    def __init__(self, model: nn.Module, together: bool) -> None:
        self.model = model
        self.size, self.rank = (num_processes(), rank()) if together else (1, 0)
        self.module: nn.Module = model
        if self.size > 1:
            # Buffers are averaged by `meet`; a forward may leave parameters out, such as an auxiliary head's.
            self.module = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    @property
    def own(self) -> tuple[int, ...]:
        """What makes the random numbers of this process its own: nothing where it is alone."""
        return (self.rank,) if self.size > 1 else ()

    def share(self, inputs: Any, targets: Any) -> Share:
        """Return the rows of this process; of a batch with fewer rows than processes, some run one that counts 0."""
        if self.size == 1:
            return Share(inputs=inputs, targets=targets)
        number = leading_size(inputs)
        own = torch.arange(number).tensor_split(self.size)[self.rank]
        chosen = own if len(own) else torch.tensor([0])
        fraction = len(own) / number
        return Share(
            inputs=sample_rows(inputs, chosen),
            targets=sample_rows(targets, chosen),
            rows=self.size * fraction,
            fraction=fraction,
        )

    def total(self, loss: float) -> float:
        """Return the loss of the batch from the weighted losses of the shares."""
        return loss if self.size == 1 else float(summed(torch.tensor(loss, dtype=torch.float64))) / self.size

    def meet(self) -> None:
        """Average running statistics, which each process takes from its own rows."""
        floating = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if self.size == 1 or not floating:
            return
        mean = summed(torch.cat([buffer.detach().double().flatten() for buffer in floating])) / self.size
        for buffer, part in zip(floating, mean.split([buffer.numel() for buffer in floating]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def wait(self) -> None:
        """Let all processes come to this line."""
        if self.size > 1:
            dist.barrier()


def is_shared(model: nn.Module) -> bool:
    """Return whether the user wrapped a model to train it on several processes."""
    return isinstance(model, DistributedDataParallel) and num_processes() > 1


@contextmanager
def shared_data(together: bool, **batches: Iterable[Any]) -> Iterator[None]:
    """Let batches be whole in this block, and the same on all processes that train together.

    Raises:
        DataError: They differ.
    """
    with ExitStack() as stack:
        for name, data in batches.items() if together else ():
            stack.enter_context(whole(data))
            check_same(data, name)
        yield
