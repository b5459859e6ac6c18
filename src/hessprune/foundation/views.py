"""Shapes of views: written sizes that fell are lowered, and those that were computed from an embedding are restored."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from hessprune.foundation.written_size import WrittenSize


class Sizes(Protocol):
    """The written sizes of one forward."""

    def at(self, kind: str, shape: Sequence[Any]) -> list[tuple[WrittenSize, int]]:
        """Return the sizes that a call names, each with what remains."""
        ...

    def widths(self, rank: int) -> Iterator[WrittenSize]:
        """Yield the sizes that stay although they are computed from the embedding."""
        ...

    def note(self, written: WrittenSize) -> None:
        """Note that a size took the place of a written one."""


def fitting_view(lowered: Sizes, x: Tensor, given: list[Any]) -> list[Any]:
    """Return the shape for a view: with sizes that stay as they were, and with those that fell as they are now."""
    whole, stayed = _restored(lowered, x, given)
    for named, taken in ((whole, stayed), (given, [])) if stayed else ((given, []),):
        if _fills(named, x.numel()):
            return _noted(lowered, named, taken)
        shape, fallen = _fallen(lowered, x, named)
        if _fills(shape, x.numel(), opens=True):
            return _noted(lowered, shape, [*taken, *fallen])
    return given


def _fallen(lowered: Sizes, x: Tensor, given: list[Any]) -> tuple[list[Any], list[WrittenSize]]:
    """Lower the sizes of every run of axes that fits the tensor with what remains, and not as it is written."""
    shape, least, runs, taken = [*given], [*given], {}, []
    for written, left in lowered.at("view", given):
        if written.run is not None and written.run[2] == x.dim():
            runs.setdefault(written.run, []).append((written, left))
            least[written.axis] = left
    for (first, end, _, start, stop), sizes in runs.items():
        new = [*shape]
        for written, left in sizes:
            new[written.axis] = left
        numel = math.prod(x.shape[first:end])
        # The same size may stand in another call: there, the axes around do not hold what is around the run.
        beside = ((x.shape[:first], slice(start)), (x.shape[end:], slice(stop, None)))
        is_here = all(
            any(_fills(choice[part], math.prod(sizes_in), opens=True) for choice in (given, least))
            for sizes_in, part in beside
        )
        if is_here and not _fills(shape[start:stop], numel) and _fills(new[start:stop], numel, opens=True):
            shape = new
            taken += [written for written, _ in sizes]
    return shape, taken


def _restored(lowered: Sizes, x: Tensor, given: list[Any]) -> tuple[list[Any], list[WrittenSize]]:
    """Restore the sizes of heads that were computed from the embedding; with an open size, if the shape cannot fit."""
    shape, taken = [*given], []
    can_fit = any(map(_is_open, given)) and _fills(given, x.numel(), opens=True)
    for written in () if can_fit else lowered.widths(len(given)):
        is_here = written.run is not None and written.run[2] == x.dim() and type(given[written.axis]) is int
        if is_here and given[written.axis] not in (-1, written.size):
            shape[written.axis] = written.size
            taken.append(written)
    return shape, taken


def _noted(lowered: Sizes, shape: list[Any], taken: Iterable[WrittenSize]) -> list[Any]:
    """Return a shape, and note the sizes that it took the place of."""
    for written in taken:
        lowered.note(written)
    return shape


def _fills(sizes: Sequence[Any], numel: Any, *, opens: bool = False) -> bool:
    """Return whether axes hold so many numbers; with `opens`, also if an open size could make them fit."""
    known = math.prod(size for size in sizes if not _is_open(size))
    return bool(opens and numel % max(known, 1) == 0) if any(map(_is_open, sizes)) else bool(known == numel)


def _is_open(size: Any) -> bool:
    return type(size) is int and size == -1
