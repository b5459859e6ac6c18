"""Several processes that train one model: each runs its rows of every batch, torch adds up the gradients.

A batch is the same whatever the number of processes, so a run that starts with two of them ends with four.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hessprune.errors import DataError
from hessprune.foundation.processes import check_same, differing, num_processes, rank, summed, whole
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import describe, leading_size, tensors_in

LEAST = 2
"""Rows of a share, where a batch has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The rows of a batch that one process runs."""

    inputs: Any
    targets: Any
    rows: float = 1.0
    """Factor of a mean over these rows: the mean of such means over processes is that over the batch."""


class Team:
    """The processes that train a model together, or the one that trains it alone."""

    def __init__(self, model: nn.Module, together: bool) -> None:
        self.model = model
        self.size, self.rank = (num_processes(), rank()) if together else (1, 0)
        self.module: nn.Module = model
        self._fraction = 1.0
        if self.size > 1:
            # Buffers are averaged by `meet`; a forward may leave parameters out, such as an auxiliary head's.
            self.module = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    @property
    def own(self) -> tuple[int, ...]:
        """The part of a seed that belongs to this process: nothing where it is alone."""
        return (self.rank,) if self.size > 1 else ()

    def share(self, inputs: Any, targets: Any) -> Share:
        """Return the rows of this process, two at least, as BatchNorm needs; those left over run some that count 0.

        Raises:
            DataError: The rows of a tensor cannot be told from its shape.
        """
        if self.size == 1:
            return Share(inputs=inputs, targets=targets)
        number = leading_size(inputs)
        parts = torch.arange(number, device="cpu").tensor_split(max(1, min(self.size, number // LEAST)))
        own = parts[self.rank] if self.rank < len(parts) else parts[0][:0]
        rows = own if len(own) else torch.arange(min(LEAST, number), device="cpu")
        self._fraction = len(own) / number
        return Share(
            inputs=_rows_of(inputs, rows, number),
            targets=_rows_of(targets, rows, number),
            rows=self.size * self._fraction,
        )

    def total(self, loss: float, batch: Any) -> float:
        """Return the loss of the batch from the weighted losses of the shares.

        Raises:
            DataError: The processes do not hold the same batch.
        """
        if self.size == 1:
            return loss
        facts = torch.zeros(1 + self.size, dtype=torch.float64, device="cpu")
        facts[0] = loss
        facts[1 + self.rank] = sum(float(tensor.double().sum()) for tensor in tensors_in(batch))
        total, *sums = summed(facts).tolist()
        if any(value != sums[0] for value in sums) and all(map(math.isfinite, sums)):
            raise DataError(differing("train"))
        return total / self.size

    def meet(self) -> None:
        """Average running statistics, which each process takes from its own rows, by these rows."""
        floating = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if self.size == 1 or not floating:
            return
        own = torch.cat([buffer.detach().double().flatten() for buffer in floating])
        mean = summed(own * self._fraction if self._fraction else torch.zeros_like(own))
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
            with seeded(0):  # each process may have a seed of its own; training draws by that of its settings
                check_same(data, name)
        yield


def _rows_of(tree: Any, rows: Tensor, number: int) -> Any:
    """Return some of the `number` samples of a batch: rows of tensors, items of lists with one for each sample.

    Tensors of one row, and numbers, belong to all samples.

    Raises:
        DataError: The first axis of a tensor is no axis of samples, or a list may hold samples or whole tensors.
    """
    if isinstance(tree, Tensor):
        return tree[rows.to(tree.device)] if tree.dim() and tree.shape[0] == number else _common(tree, number)
    if isinstance(tree, Mapping):
        return {key: _rows_of(value, rows, number) for key, value in tree.items()}
    if isinstance(tree, list) and len(tree) == number:
        if (
            all(tensor.dim() and tensor.shape[0] == number for tensor in tensors_in(tree))
            and next(iter(tensors_in(tree)), None) is not None
        ):
            raise DataError(
                f"lists in `train` must hold one item for each sample, got {describe(tree)[:80]}, which may be "
                f"{number} whole tensors. Put whole tensors into a tuple, or take another batch size."
            )
        return [tree[row] for row in rows.tolist()]
    if isinstance(tree, tuple | list):
        parts = [_rows_of(value, rows, number) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def _common(tensor: Tensor, number: int) -> Tensor:
    """Return a tensor that belongs to all samples of a batch.

    Raises:
        DataError: It has several rows.
    """
    if tensor.dim() and tensor.shape[0] != 1:
        raise DataError(
            f"tensors in `train` must have the {number} samples first, for several processes to share them, got "
            f"{describe(tensor)}. Give one row for each sample, or one for all of shape (1, …)."
        )
    return tensor
