"""Questions that only the ties of the whole graph can answer: asked while it runs, answered once it has run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hessprune.structure.labels import CONSTANT, Labels, compact, merged, varies, varying


@dataclass(frozen=True, slots=True)
class Split:
    """A view split one axis into `dims`: units may vary along one of them only, or the parts are no grid any more."""

    labels: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pin:
    """The axis `dim` keeps its size: units that lie along this axis only stay."""

    labels: Tensor
    dim: int
    reason: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two tensors of one rank meet element by element; the labels of `carried` are those of the result.

    Where one is spread over several units of the other (axes of size 1), `other` scales many units and stays. Where one
    holds something that stays along an axis of units, these units stay too.
    """

    carried: Tensor
    other: Tensor
    reason: str

    def is_spread(self) -> bool:
        """Whether either is spread over several units of the other."""
        return _is_spread(self.carried, over=self.other) or _is_spread(self.other, over=self.carried)


class Closure:
    """Collects questions; turns the answers into ties, and into freezes where ties cannot settle them."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._splits: list[Split] = []
        self._pins: list[Pin] = []
        self._meetings: list[Meeting] = []

    def split(self, labels: Tensor, dims: tuple[int, ...]) -> None:
        """Ask that the grid which a view has made of one axis stays a grid."""
        if sum(varies(labels, dim) for dim in dims) > 1:
            self._splits.append(Split(labels, dims))

    def pin(self, labels: Tensor, dim: int, reason: str) -> None:
        """Ask that an axis keeps its size."""
        if varies(labels, dim):
            self._pins.append(Pin(labels, dim % labels.dim(), reason))

    def meet(self, a: Tensor, b: Tensor, reason: str) -> Tensor:
        """Tie two label tensors of one rank that broadcast against each other; return the labels of the result."""
        if a.shape == b.shape and varying(a) == varying(b) and not _stays(a) and not _stays(b):
            self._labels.tie(a, b)
            return a
        a, b = _narrowed(a, b), _narrowed(b, a)
        meeting = Meeting(*((b, a) if _is_spread(a, over=b) else (a, b)), reason)
        if (is_spread := meeting.is_spread()) or _is_bound(a, by=b) or _is_bound(b, by=a):
            self._meetings.append(meeting)
        if not is_spread:
            self._tie(a, b)
        return merged(meeting.carried, meeting.other)

    def close(self) -> None:
        """Tie until nothing changes; freeze what then still contradicts itself."""
        waiting, changed = [meeting for meeting in self._meetings if meeting.is_spread()], True
        while changed:
            still = [meeting for meeting in waiting if not self._tie_if_settled(meeting)]
            waiting, changed = still, len(still) < len(waiting) or self._tie_pins() or self._tie_splits()
        for now, pin in [(compact(self._labels.resolve(pin.labels))[0], pin) for pin in self._pins]:
            lines = (now != now.narrow(pin.dim, 0, 1)).any(pin.dim, keepdim=True).expand(now.shape)
            self._labels.freeze(now[lines], pin.reason)
        while self._freeze_bound() or self._freeze_spread():
            pass

    def _tie_pins(self) -> bool:
        """Where units lie along another axis too, merge them along the one that keeps its size."""
        now = [(pin, varying(self._labels.resolve(pin.labels))) for pin in self._pins]
        grids = [pin for pin, dims in now if pin.dim in dims and len(dims) > 1]
        for pin in grids:
            self._labels.tie_along(pin.labels, pin.dim)
        return bool(grids)

    def _tie_splits(self) -> bool:
        now = [(split, self._labels.resolve(split.labels)) for split in self._splits]
        grids = [(split, [dim for dim in split.dims if varies(labels, dim)]) for split, labels in now]
        for split, dims in grids:
            if len(dims) > 1:
                self._labels.tie_along(split.labels, dims[0])
        return any(len(dims) > 1 for _, dims in grids)

    def _tie_if_settled(self, meeting: Meeting) -> bool:
        """Tie a meeting in which nothing is spread over several units any more."""
        now = self._now(meeting)
        if now.is_spread():
            return False
        self._tie(now.carried, now.other)
        return True

    def _tie(self, a: Tensor, b: Tensor) -> None:
        a, b = compact(*torch.broadcast_tensors(a, b))
        free = (a > CONSTANT) & (b > CONSTANT)
        self._labels.tie(a[free], b[free])

    def _freeze_bound(self) -> bool:
        """Freeze units that meet something that stays along their axis; return whether there were any."""
        found = False
        for now in [self._now(meeting) for meeting in self._meetings]:
            for free, by in ((now.carried, now.other), (now.other, now.carried)):
                if not now.is_spread() and _is_bound(free, by=by):
                    a, b = compact(*torch.broadcast_tensors(free, by))
                    held = (a > CONSTANT) & (b <= CONSTANT)
                    self._labels.tie(a[held], b[held])
                    found |= bool(held.any())
        return found

    def _freeze_spread(self) -> bool:
        """Freeze the first thing that is spread over several units; return whether there was one."""
        spread = next((now for now in map(self._now, self._meetings) if now.is_spread()), None)
        if spread:
            self._labels.freeze(spread.other, spread.reason)
        return spread is not None

    def _now(self, meeting: Meeting) -> Meeting:
        return Meeting(self._labels.resolve(meeting.carried), self._labels.resolve(meeting.other), meeting.reason)


def _narrowed(labels: Tensor, other: Tensor) -> Tensor:
    """Undo the expansion of labels along axes of the other's units: what is spread over them has size 1 there."""
    if not _stays(labels):
        for dim, size in enumerate(labels.shape):
            if size > 1 and not varies(labels, dim) and varies(other, dim):
                labels = labels.narrow(dim, 0, 1)
    return labels


def _is_spread(labels: Tensor, *, over: Tensor) -> bool:
    """Whether something removable has size 1 where the other tensor holds several units."""
    sizes = zip(labels.shape, over.shape, strict=True)
    dims = [dim for dim, (own, size) in enumerate(sizes) if own == 1 < size]
    return bool(dims) and bool((compact(labels)[0] > CONSTANT).any()) and _units_along(over, dims)


def _is_bound(labels: Tensor, *, by: Tensor) -> bool:
    """Whether units lie along an axis along which the other tensor holds something that stays."""
    dims = [dim for dim, size in enumerate(by.shape) if size > 1]
    return bool(dims) and _stays(by) and _units_along(labels, dims)


def _stays(labels: Tensor) -> bool:
    """Whether some of it stays for ever."""
    return bool((compact(labels)[0] <= CONSTANT).any())


def _units_along(labels: Tensor, dims: list[int]) -> bool:
    movable = compact(labels)[0].clamp(min=CONSTANT)
    return any(varies(movable, dim) for dim in dims)
