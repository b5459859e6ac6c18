"""Progress without a dependency: long loops announce themselves, whoever listens draws the bar.

Library code wraps a loop in `track(...)` and never prints. The command line installs a listener; without one, `track`
costs a generator and nothing else.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """What draws progress: `start` opens a bar and returns its handle, `advance` moves it, `finish` closes it."""

    def start(self, label: str, total: int | None) -> int:
        """Open a bar; return its handle."""
        ...

    def advance(self, handle: int, steps: int, note: str) -> None:
        """Move a bar, with a short text beside it."""
        ...

    def finish(self, handle: int) -> None:
        """Close a bar."""
        ...


_listener: ContextVar[Listener | None] = ContextVar("hessprune_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything in this block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def is_heard() -> bool:
    """Return whether anything listens."""
    return _listener.get() is not None


class Bar:
    """A handle on one running bar; `note` is a short text beside it, such as the current loss."""

    def __init__(self, label: str, total: int | None) -> None:
        self._listener = _listener.get()
        self._handle = self._listener.start(label, total) if self._listener else 0

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar by `steps`."""
        if self._listener:
            self._listener.advance(self._handle, steps, note)

    def close(self) -> None:
        """Finish the bar."""
        if self._listener:
            self._listener.finish(self._handle)


@contextmanager
def progress_bar(label: str, total: int | None = None) -> Iterator[Bar]:
    """Open a bar for a block whose steps are counted by hand with `bar.advance()`."""
    bar = Bar(label, total)
    try:
        yield bar
    finally:
        bar.close()


def known_length(items: Iterable[Any]) -> int | None:
    """Return the number of items, or None where they do not tell, as a loader of a stream does not.

    Example:
        >>> known_length([1, 2]), known_length(iter([1, 2]))
        (2, None)
    """
    try:
        return items.__len__()  # type: ignore[attr-defined]  # as an attribute, which wrappers answer for what they hold
    except (AttributeError, TypeError, NotImplementedError):
        return None


def track(items: Iterable[T], label: str, total: int | None = None, *, note: str = "") -> Iterator[T]:
    """Yield from `items`, one step of progress each; `note` stands beside the bar from the start.

    Example:
        >>> list(track([1, 2], "counting"))
        [1, 2]
    """
    size = total if total is not None else known_length(items)
    with progress_bar(label, size) as bar:
        if note:
            bar.advance(0, note)
        for item in items:
            yield item
            bar.advance()
