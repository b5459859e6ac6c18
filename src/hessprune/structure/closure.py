"""Questions that only the ties of the whole graph can answer: asked while it runs, answered once it has run."""

from dataclasses import dataclass, replace

from torch import Tensor

from hessprune.operators.labels import CONSTANT, Labels, compact, merged, varies, varying


@dataclass(frozen=True, slots=True)
class Split:
    """A view split one axis into `dims`: units may lie along one of them only, or the parts are no grid any more."""

    labels: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pin:
    """The axis `dim` keeps its size: units that lie along another axis too merge along this one, others stay."""

    labels: Tensor
    dim: int
    reason: str


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two tensors of one rank meet element by element; the labels of `carried` are those of the result.

    Units that lie along the same axes are tied. Along an axis with units of one of them, the other has either the same
    size and keeps it (a pin), or size 1: then it scales several units and stays.
    """

    carried: Tensor
    other: Tensor
    reason: str

    def is_settled(self) -> bool:
        """Whether units lie along the same axes of both."""
        return _axes(self.carried) == _axes(self.other)

    def is_spread(self) -> bool:
        """Whether one of them scales several units of the other."""
        return _is_spread(self.carried, over=self.other) or _is_spread(self.other, over=self.carried)

    def held(self) -> list[tuple[Tensor, int, Tensor]]:
        """Return the axes of units whose size is kept: units, axis, and the tensor that keeps it."""
        pairs = ((self.carried, self.other), (self.other, self.carried))
        return [(a, dim, by) for a, by in pairs for dim in {*_axes(a)} - {*_axes(by)} if by.shape[dim] > 1]


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
        a, b = _single(a), _single(b)
        leads = _is_spread(a, over=b) or (not _is_spread(b, over=a) and len(_axes(b)) < len(_axes(a)))
        meeting = Meeting(*((b, a) if leads else (a, b)), reason)
        if meeting.is_settled():
            self._tie(meeting)
        elif meeting.held() or meeting.is_spread():
            self._meetings.append(meeting)
        return merged(meeting.carried, meeting.other)

    def close(self) -> None:
        """Tie until nothing changes; freeze what then still contradicts itself."""
        while self._tie_meetings() or self._tie_pins() or self._tie_splits() or self._freeze():
            pass

    def _tie_meetings(self) -> bool:
        """Tie the meetings that have been settled by other ties."""
        meetings = [(meeting, self._now(meeting)) for meeting in self._meetings]
        self._meetings = [meeting for meeting, now in meetings if not now.is_settled()]
        for _, now in meetings:
            if now.is_settled():
                self._tie(now)
        return len(self._meetings) < len(meetings)

    def _tie_pins(self) -> bool:
        """Merge units along an axis that keeps its size where they lie along another axis too."""
        grids = [pin for pin in self._open_pins() if len(_axes(pin.labels)) > 1]
        for pin in grids:
            self._labels.tie_along(pin.labels, pin.dim)
        return bool(grids)

    def _tie_splits(self) -> bool:
        """Merge units across the outer part of an axis that was split."""
        now = [(self._labels.resolve(split.labels), split.dims) for split in self._splits]
        grids = [(labels, found) for labels, dims in now if len(found := sorted({*dims} & {*_axes(labels)})) > 1]
        for labels, dims in grids:
            self._labels.tie_along(labels, dims[0])
        return bool(grids)

    def _freeze(self) -> bool:
        """Freeze units on axes that keep their size, or else the first thing spread over several units."""
        pins = list(self._open_pins())
        for pin in pins:
            labels = compact(pin.labels)[0]
            lines = (labels != labels.narrow(pin.dim, 0, 1)).any(pin.dim, keepdim=True)
            self._labels.freeze(labels[lines.expand(labels.shape)], pin.reason)
        spread = None if pins else next((now for now in map(self._now, self._meetings) if now.is_spread()), None)
        if spread:
            self._labels.freeze(spread.other, spread.reason)
        return bool(pins or spread)

    def _open_pins(self) -> list[Pin]:
        """Return the pins that still have units along their axis, in the labels of now."""
        now = [replace(pin, labels=self._labels.resolve(pin.labels)) for pin in self._pins]
        pins = [pin for pin in now if pin.dim in _axes(pin.labels)]
        for meeting in map(self._now, self._meetings):
            for labels, dim, by in meeting.held():
                stays = int(by.flatten()[0])
                pins.append(Pin(labels, dim, self._labels.reason(stays) if stays < CONSTANT else meeting.reason))
        return pins

    def _tie(self, meeting: Meeting) -> None:
        """Tie what lies along the same axes; of two tensors without any, only what is a unit as a whole."""
        a, b = meeting.carried, meeting.other
        if _axes(a) or not (_stays(a) or _stays(b)):
            self._labels.tie(a, b)

    def _now(self, meeting: Meeting) -> Meeting:
        carried, other = self._labels.resolve(meeting.carried), self._labels.resolve(meeting.other)
        return Meeting(carried, other, meeting.reason)


def _axes(labels: Tensor) -> tuple[int, ...]:
    """Return the axes along which units lie."""
    return varying(compact(labels)[0].clamp(min=CONSTANT))


def _stays(labels: Tensor) -> bool:
    """Whether some of it stays for ever."""
    return bool((compact(labels)[0] <= CONSTANT).any())


def _single(labels: Tensor) -> Tensor:
    """Undo the expansion of a tensor that is one unit as a whole: it is spread wherever it meets several."""
    is_unit = not _axes(labels) and not _stays(labels)
    return labels[(slice(0, 1),) * labels.dim()] if is_unit else labels


def _is_spread(labels: Tensor, *, over: Tensor) -> bool:
    """Whether something removable has size 1 where units of the other tensor lie."""
    spread = any(labels.shape[dim] == 1 for dim in _axes(over))
    return spread and bool((compact(labels)[0] > CONSTANT).any())
