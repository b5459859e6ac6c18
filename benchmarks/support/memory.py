"""Peak memory, measured in processes of their own."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class NoAnswerError(Exception):
    """A process had no answer in time."""


def in_a_process(function: Callable[..., Any], *arguments: Any, limit_s: float | None = None) -> Any:
    """Return what `function` returns in a fresh process; after `limit_s` seconds give up and raise `NoAnswerError`."""
    context = multiprocessing.get_context("forkserver")  # it imports once, for all of them
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, *arguments))
    process.start()
    sender.close()  # so that a child that dies is an error here, not a wait
    try:
        if not receiver.poll(limit_s):
            raise NoAnswerError(f"no answer within {limit_s:g} s")
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def _answer(sender: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    sender.send(function(*arguments))


class Peak:
    """Watches the resident set from a thread, since the system's own high-water mark also counts start-up.

    Args:
        own: Leave out pages of files, which the system can write back and take away.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._resident = resident_own if own else resident
        self._before = self._highest = self._resident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._highest = max(self._highest, self._resident())
            time.sleep(0.001)

    def stop(self) -> int:
        """Return by how many bytes the resident set grew at most."""
        self._stopped.set()
        self._thread.join()
        return self._highest - self._before


def resident() -> int:
    """Return the resident set in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def resident_own() -> int:
    """Return the resident set without pages of files, in bytes."""
    pages = [int(value) for value in Path("/proc/self/statm").read_text(encoding="ascii").split()]
    return (pages[1] - pages[2]) * resource.getpagesize()
