"""How far the resident set of a fresh process grows while it does something."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_a_process(run: Callable[..., object], *args: object) -> Any:
    """Return what `run(sender, *args)` sends from a fresh process."""
    context = multiprocessing.get_context("forkserver")  # it imports once, for all of them
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(sender, *args))
    process.start()
    sender.close()  # so that a child that dies is an error here, not a wait
    found = receiver.recv()
    process.join()
    return found


class Peak:
    """Watches the resident set from a thread, since the system's own high-water mark also counts start-up."""

    def __init__(self) -> None:
        self._highest, self._stopped = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._highest = max(self._highest, resident())
            time.sleep(0.001)

    def stop(self) -> int:
        """Return the highest value seen."""
        self._stopped.set()
        self._thread.join()
        return self._highest


def resident() -> int:
    """Return the resident set in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
