"""Two processes that work together, for tests of what several of them do."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SIZE = 2


def spawned(work: Callable[..., None], *given: Any) -> None:
    """Call `work(number, port, *given)` in processes of their own, and wait until all are done."""
    for tries_left in reversed(range(3)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            mp.spawn(work, (port, *given), nprocs=SIZE)  # type: ignore[attr-defined]
        except mp.ProcessRaisedException as error:  # another process may have taken the port since
            if not tries_left or "EADDRINUSE" not in str(error):
                raise
        else:
            return


@contextmanager
def grouped(number: int, port: int) -> Iterator[None]:
    """Let this process be one of a group that adds up with gloo, on one thread."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=SIZE)
    try:
        yield
    finally:
        dist.destroy_process_group()
