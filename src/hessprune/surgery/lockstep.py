"""Several runs of one function in lockstep: each pauses at named points, where the runs that wait there meet.

Inputs of several shapes cannot be one batch, and yet a layer is refitted on all of them before any run goes on. Only
one run works at a time, in a thread of its own, so that results do not depend on timing.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

Meeting = Callable[[str, list[Any]], None]
"""Receives the name of a point, and what each of the runs brought to it."""
Pause = Callable[[str, Any], None]
"""What a run calls at a point: the name, and what it brings."""


def in_lockstep(runs: Sequence[Callable[[Pause], None]], meet: Meeting) -> None:
    """Carry out runs; wherever all of them wait, those at the point of the first one meet and go on.

    Args:
        runs: Functions of `pause`; a single one runs without a thread.
        meet: Called once for each meeting.

    Raises:
        Exception: Whatever a run raises; the others are abandoned at their next point.

    Example:
        >>> seen = []
        >>> runs = [lambda pause, n=n: (pause("a", n), pause("b", -n)) for n in (1, 2)]
        >>> in_lockstep(runs, lambda name, brought: seen.append((name, brought)))
        >>> seen
        [('a', [1, 2]), ('b', [-1, -2])]
    """
    if len(runs) == 1:
        runs[0](lambda name, brought: meet(name, [brought]))
        return
    threads = [_Run(run) for run in runs]
    try:
        while waiting := [thread for thread in threads if thread.advance()]:
            name = waiting[0].name
            together = [thread for thread in waiting if thread.name == name]
            meet(name, [thread.brought for thread in together])
            for thread in together:
                thread.may_go = True
    finally:
        for thread in threads:
            thread.abandon()


class _Abandoned(BaseException):
    """Ends a run at its next point."""


class _Run:
    """One run in a thread that works only while `advance` waits for it."""

    def __init__(self, run: Callable[[Pause], None]) -> None:
        self.name, self.brought, self.may_go = "", None, True
        self._error: BaseException | None = None
        self._done = self._given_up = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(run,), daemon=True)
        self._thread.start()

    def advance(self) -> bool:
        """Work up to the next point, unless it already waits at one; return False once it has ended."""
        if self.may_go and not self._done:
            self.may_go, self.brought = False, None
            self._turn.release()
            self._back.acquire()
            if self._error is not None:
                raise self._error
        return not self._done

    def abandon(self) -> None:
        """End the run."""
        self._given_up = True
        self._turn.release()
        self._thread.join()

    def _work(self, run: Callable[[Pause], None]) -> None:
        self._turn.acquire()
        try:
            if not self._given_up:
                run(self._pause)
        except _Abandoned:  # nobody waits for what it would return
            pass
        except BaseException as error:  # raised again by `advance`, in the caller's thread
            self._error = error
        self._done = True
        self._back.release()

    def _pause(self, name: str, brought: Any) -> None:
        self.name, self.brought = name, brought
        self._back.release()
        self._turn.acquire()
        if self._given_up:
            raise _Abandoned
