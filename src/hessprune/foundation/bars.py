"""Progress bars on standard error: what listens to the library's long loops, from the command line and from Python."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from hessprune.foundation.progress import is_heard, listening

Volume = Literal["quiet", "normal", "verbose"]
REPORTED_SECONDS = 0.5


class Bars:
    """A `Listener` that draws bars on standard error, and leaves one line behind for every stage that took a while.

    Bars nest: the outermost is a stage, those inside are its loops and vanish when they are done. `spoken` turns a
    stage's name into words.
    """

    def __init__(self, shows: Volume, spoken: Callable[[str], str]) -> None:
        from rich.console import Console  # which costs as much to import as a command's help takes
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console(stderr=True, highlight=False, quiet=shows == "quiet")
        self._spoken = spoken
        self._threshold = 0.0 if shows == "verbose" else REPORTED_SECONDS
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._tasks: dict[int, Any] = {}
        self._open: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def start(self, label: str, total: int | None) -> int:
        """Open a bar."""
        label = self._spoken(label)
        task = self._progress.add_task("  " * len(self._open) + label, total=total, note="")
        self._tasks[int(task)], self._open[int(task)] = task, (label, time.monotonic())
        return int(task)

    def advance(self, handle: int, steps: int, note: str) -> None:
        """Move a bar."""
        shown: dict[str, Any] = {"note": note} if note else {}
        self._progress.update(self._tasks[handle], advance=steps, **shown)

    def finish(self, handle: int) -> None:
        """Remove a bar; an outermost one that took a while and ended well leaves a line with its time."""
        label, started = self._open.pop(handle)
        self._progress.remove_task(self._tasks.pop(handle))
        seconds = time.monotonic() - started
        if not self._open and seconds >= self._threshold and sys.exc_info()[0] is None:
            self.console.print(f"[green]✓[/] {label:<44}[dim]{seconds:7.1f} s[/]")


@contextmanager
def bars(shows: Volume = "normal", spoken: Callable[[str], str] = str) -> Iterator[None]:
    """Draw progress on standard error for whatever runs in the block."""
    with Bars(shows, spoken) as drawn, listening(drawn):
        yield


def shown_progress(progress: bool) -> AbstractContextManager[None]:
    """Return a block that draws bars if it is asked to, and nobody draws them already.

    Raises:
        ArgumentError: `progress` is no flag.
    """
    from hessprune.foundation.options import check_flag  # which brings torch, and the command line's help needs none
    from hessprune.foundation.processes import rank

    check_flag("progress", progress)
    return bars() if progress and rank() == 0 and not is_heard() else nullcontext()


@contextmanager
def show_progress(shows: Volume = "normal") -> Iterator[None]:
    """Draw progress bars on standard error for all that this package does in the block.

    Args:
        shows: `"verbose"` leaves a line for every stage, `"normal"` for those of half a second,
            `"quiet"` draws nothing.

    Raises:
        ArgumentError: `shows` is none of these.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> with hp.show_progress("quiet"):
        ...     result = hp.prune(net, torch.zeros(1, 4), [torch.randn(16, 4)], budget=hp.Budget(macs=0.5))
    """
    from hessprune.foundation.checks import check_choice

    check_choice("shows", shows, ("quiet", "normal", "verbose"))
    with bars(shows):
        yield
