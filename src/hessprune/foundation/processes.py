"""Several processes (`torchrun`, `torch.distributed`): each works on its batches, and all have the same sums.

Every process reads the same batches in the same order, and number `n` belongs to the process `n mod k`. Whole batches
are shared out, so that what is decided within a batch does not depend on `k`; sums over processes are in float64, and
equal on all of them. Without a process group there is one process, which has all batches.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hessprune.errors import ArgumentError, DataError, HessPruneError, NumericalError
from hessprune.foundation.formatting import shown
from hessprune.foundation.hashing import weights_sha256
from hessprune.foundation.trees import tensors_in

_alone: ContextVar[bool] = ContextVar("hessprune_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Work in this block as a single process does: the others do something else."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def num_processes() -> int:
    """Return the number of processes that work together, 1 without a process group.

    Example:
        >>> num_processes()
        1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone.get() else 1


def rank() -> int:
    """Return the number of this process, 0 without a process group."""
    return dist.get_rank() if num_processes() > 1 else 0


def is_own(number: int) -> bool:
    """Return whether the batch of this number belongs to this process."""
    return number % num_processes() == rank()


def summed(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, equal on all of them, on the device and in the type of `values`.

    Example:
        >>> summed(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if num_processes() == 1:
        return values
    total = values.detach().to(_device(values), torch.float64, copy=True).contiguous()
    with _naming_the_end_of_others():
        dist.all_reduce(total)
    return total.to(values.device, values.dtype)


def summed_numbers(*numbers: float) -> list[float]:
    """Return the sums of some numbers over all processes."""
    return summed(torch.tensor(numbers, dtype=torch.float64, device="cpu")).tolist()


def gathered_rows(rows: Tensor) -> Tensor:
    """Return the rows `(n, U)` of all processes, one process after another, in the widest of their types."""
    if num_processes() == 1:
        return rows
    facts = torch.zeros(num_processes(), 2, dtype=torch.int64, device="cpu")
    facts[rank()] = torch.tensor([len(rows), rows.dtype.itemsize if len(rows) else 0], device="cpu")
    facts = summed(facts)
    dtype = torch.float64 if int(facts[:, 1].max()) > 4 else torch.float32
    parts = []
    for number, count in enumerate(facts[:, 0].tolist()):
        part = rows if number == rank() else rows.new_empty(count, *rows.shape[1:])
        part = part.to(_device(rows), dtype).contiguous()
        with _naming_the_end_of_others():
            dist.broadcast(part, number)
        parts.append(part.to(rows.device))
    return torch.cat(parts)


def check_same(batches: Iterable[Any], name: str) -> None:
    """Raise unless all processes hold the same first batch, and as many batches.

    Raises:
        DataError: The sums of its tensors differ, or the numbers do.
    """
    if num_processes() == 1:
        return
    own = torch.zeros(num_processes(), 3, dtype=torch.float64, device="cpu")
    tensors = [tensor.double() for tensor in tensors_in(next(iter(batches)))]
    own[rank(), 0] = float(sum(tensor.sum() for tensor in tensors))
    own[rank(), 1] = sum(tensor.numel() for tensor in tensors)
    with suppress(TypeError):  # an iterable without a length
        own[rank(), 2] = len(getattr(batches, "batches", batches))  # type: ignore[arg-type]  # those in a wrapper
    every = summed(own)
    if not torch.allclose(every, every[:1].expand_as(every), equal_nan=True):
        raise DataError(differing(name))


def check_same_content(sha256: str, name: str) -> None:
    """Raise unless all processes have read the same batches, by the hash of all of them.

    Raises:
        DataError: They have not.
    """
    if not _are_equal(sha256):
        raise DataError(differing(name))


def check_same_work(model: nn.Module, settings: Mapping[str, object]) -> None:
    """Raise unless all processes hold the same weights and settings.

    Args:
        model: A model that is not spread over the processes.
        settings: Values by name that their texts tell.

    Raises:
        ArgumentError: Weights or a setting differ.
    """
    if num_processes() == 1:
        return
    if not _are_equal(weights_sha256(model)):
        raise ArgumentError(
            "`model` must be the same on all processes, got other weights. Load one checkpoint, or call "
            "torch.manual_seed(0) before the model is made, on every process."
        )
    for name, value in settings.items():
        if not _are_equal(hashlib.sha256(str(value).encode()).hexdigest()):
            raise ArgumentError(
                f"`{name}` must be the same on all processes, got {shown(value)} on this one. Pass the same on all."
            )


def _are_equal(sha256: str) -> bool:
    """Return whether all processes hold the same hash."""
    own = torch.zeros(num_processes(), dtype=torch.float64, device="cpu")
    own[rank()] = int(sha256[:12] or "0", 16)
    return len(set(summed(own).tolist())) == 1


def by_the_first(make: Callable[[], str]) -> str:
    """Return on all processes the text that the first one makes alone, or raise the error that it meets there."""
    if num_processes() == 1:
        return make()
    held: list[Any] = [None]
    if rank() == 0:
        with alone():
            try:
                held = [make()]
            except HessPruneError as error:
                held = [error]
    with _naming_the_end_of_others():
        dist.broadcast_object_list(held, src=0)
    if isinstance(held[0], HessPruneError):
        raise held[0]
    return held[0]


@contextmanager
def _naming_the_end_of_others() -> Iterator[None]:
    """Say in one line that another process has ended, in place of what the sockets say.

    Raises:
        HessPruneError: The processes cannot reach each other.
    """
    try:
        yield
    except RuntimeError as error:
        raise HessPruneError(
            "another process has ended, or does something else: its message says why. Start all of them again."
        ) from error


def differing(name: str) -> str:
    """Return the message for data that differ between processes."""
    return (
        f"`{name}` must be the same on all processes, which share them out, got different ones. Pass the whole list, "
        "or a DataLoader with a DistributedSampler, on every process."
    )


def check_agreement(number: int, demand: str) -> None:
    """Raise unless all processes hold the same number.

    Raises:
        NumericalError: They differ; `demand` says what must be equal.
    """
    if not _are_equal(f"{number:012x}"):
        raise NumericalError(f"{demand}, but the processes differ. Use one process.")


@contextmanager
def whole(batches: Any) -> Iterator[None]:
    """Let a `DistributedSampler` of a loader give all samples in this block, in the same order on all processes."""
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, torch.utils.data.DistributedSampler):
        yield
        return
    names = ("num_replicas", "rank", "num_samples", "total_size")
    before = [getattr(sampler, name) for name in names]
    size = len(sampler.dataset)  # type: ignore[arg-type]
    _assign(sampler, names, (1, 0, size, size))
    try:
        yield
    finally:
        _assign(sampler, names, before)


def _assign(sampler: Any, names: Sequence[str], values: Sequence[Any]) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(sampler, name, value)


def _device(values: Tensor) -> torch.device:
    """Return where the process group adds: NCCL knows no memory of the CPU."""
    if dist.get_backend() == "nccl":
        return values.device if values.is_cuda else torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
