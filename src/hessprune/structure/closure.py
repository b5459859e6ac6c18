"""Conditions on labels that only the whole graph can settle: collected during the walk, settled after it."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hessprune.operators.labels import CONSTANT, Labels, compact, merged, removable, varies, varying


@dataclass(frozen=True, slots=True)
class Split:
    """A view split one axis into `dims`. The parts stay a grid only if units lie along one of them."""

    labels: Tensor
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pin:
    """The axis `dim` keeps its size. Units that lie along another axis, too, merge along this one; other units stay.

    Where the source code writes positions down that can be lowered, heads of attention may go all the same. A pin that
    `cuts` holds the sizes of unequal parts.
    """

    labels: Tensor
    dim: int
    reason: str
    spares_heads: bool = False
    cuts: bool = False


@dataclass(frozen=True, slots=True)
class Meeting:
    """Two tensors of one rank meet element by element; the labels of `carried` are those of the result.

    Units along the same axes are tied. Along an axis with units of one tensor only, the other tensor has either the
    same size, which it keeps (a pin), or size 1: then it scales several units and stays.
    """

    carried: Tensor
    other: Tensor
    reason: str

    def is_settled(self) -> bool:
        """Return whether units lie along the same axes of both tensors."""
        return _axes(self.carried) == _axes(self.other)

    def is_spread(self) -> bool:
        """Return whether one tensor scales several units of the other."""
        return _is_spread(self.carried, over=self.other) or _is_spread(self.other, over=self.carried)

    def held(self) -> list[tuple[Tensor, int, Tensor]]:
        """Return the axes of units that keep their size: units, axis, and the tensor that keeps it."""
        pairs = ((self.carried, self.other), (self.other, self.carried))
        return [(a, dim, by) for a, by in pairs for dim in {*_axes(a)} - {*_axes(by)} if by.shape[dim] > 1]


class Closure:
    """Collects conditions; settles them by ties, and by freezing where ties cannot."""

    def __init__(self, labels: Labels, asked: Collection[str] = ()) -> None:
        self._labels = labels
        self.asked = {*asked}
        """Kinds of units that need other rules."""
        self.heads: list[Tensor] = []
        """Labels of heads of attention, or tied to some."""
        self.normalised: list[Tensor] = []
        """Labels of channels that a norm normalises together, and that may go all the same."""
        self.widths: list[tuple[str, str, Tensor]] = []
        """Widths within heads: `"qk"` or `"v"`, the module that computes the attention, and labels."""
        self._splits: list[Split] = []
        self._pins: list[Pin] = []
        self._meetings: list[Meeting] = []

    def split(self, labels: Tensor, dims: tuple[int, ...]) -> None:
        """Require that the axes `dims`, made from one axis by a view, stay a grid."""
        if sum(varies(labels, dim) for dim in dims) > 1:
            self._splits.append(Split(labels, dims))

    def pin(self, labels: Tensor, dim: int, reason: str, *, spares_heads: bool = False, cuts: bool = False) -> None:
        """Require that an axis keeps its size; with `spares_heads`, unless all units along it are heads."""
        if varies(labels, dim):
            self._pins.append(Pin(labels, dim % labels.dim(), reason, spares_heads, cuts))

    def normalise(self, labels: Tensor, dim: int) -> bool:
        """Return whether channels that are normalised together may go: on request, if units lie along `dim` alone."""
        if "embedding" not in self.asked or self._labels.varying(labels) != (dim % labels.dim(),):
            return False
        self.normalised.append(compact(labels)[0].unique())
        return True

    @property
    def frees_widths(self) -> bool:
        """True where units of attention are widths within heads, and not heads."""
        return bool({"qk", "v"} & self.asked)

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
        """Tie labels until nothing changes; freeze labels whose conditions still conflict."""
        while self._tie_meetings() or self._tie_pins() or self._tie_splits() or self._freeze():
            pass

    def stuck(self) -> list[tuple[Tensor, str]]:
        """Return the labels along axes cut into unequal parts that stay after all, with the reason.

        Where widths are cut within heads, the heads may go: such axes count only if no other axis is cut.
        """
        cuts = [(pin, self._labels.resolve(pin.labels)) for pin in self._pins if pin.cuts]
        stuck = [pin for pin, now in cuts if not removable(now)]
        whole = [pin for pin in stuck if _axes(pin.labels) == (pin.dim,)]
        return [(compact(pin.labels)[0].unique(), pin.reason) for pin in whole or stuck]

    def _tie_meetings(self) -> bool:
        """Tie the meetings that other ties have settled."""
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
        grids = [(labels, axes) for labels, dims in now if len(axes := sorted({*dims} & {*_axes(labels)})) > 1]
        for labels, dims in grids:
            self._labels.tie_along(labels, dims[0])
        return bool(grids)

    def _freeze(self) -> bool:
        """Freeze units on axes that keep their size; without any, the first tensor that scales several units."""
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
        """Return the pins that still have units along their axis, with resolved labels."""
        now = [replace(pin, labels=self._labels.resolve(pin.labels)) for pin in self._pins]
        pins = [pin for pin in now if pin.dim in _axes(pin.labels) and not (pin.spares_heads and self._are_heads(pin))]
        for meeting in map(self._now, self._meetings):
            for labels, dim, by in meeting.held():
                stays = int(by.flatten()[0])
                pins.append(Pin(labels, dim, self._labels.reason(stays) if stays < CONSTANT else meeting.reason))
        return pins

    def _are_heads(self, pin: Pin) -> bool:
        """Return whether all units along the axis of a pin are heads; its labels are resolved."""
        heads = [self._labels.resolve(labels).unique() for labels in self.heads]
        units = compact(pin.labels)[0].unique()
        return bool(heads) and bool(torch.isin(units[units > CONSTANT], torch.cat(heads)).all())

    def _tie(self, meeting: Meeting) -> None:
        """Tie two tensors with units along the same axes; without such axes, tensors that are one unit as a whole."""
        a, b = meeting.carried, meeting.other
        if _axes(a) or not (_stays(a) or _stays(b)):
            self._labels.tie(a, b)

    def _now(self, meeting: Meeting) -> Meeting:
        """Return a meeting with resolved labels."""
        carried, other = self._labels.resolve(meeting.carried), self._labels.resolve(meeting.other)
        return Meeting(carried, other, meeting.reason)


def _axes(labels: Tensor) -> tuple[int, ...]:
    """Return the axes along which units lie."""
    return varying(compact(labels)[0].clamp(min=CONSTANT))


def _stays(labels: Tensor) -> bool:
    """Return whether some of the labels are fixed."""
    return bool((compact(labels)[0] <= CONSTANT).any())


def _single(labels: Tensor) -> Tensor:
    """Undo the expansion of a tensor that is one unit as a whole: it scales all units that it meets."""
    is_unit = not _axes(labels) and not _stays(labels)
    return labels[(slice(0, 1),) * labels.dim()] if is_unit else labels


def _is_spread(labels: Tensor, *, over: Tensor) -> bool:
    """Return whether removable labels have size 1 along an axis with units of the other tensor."""
    is_spread = any(labels.shape[dim] == 1 for dim in _axes(over))
    return is_spread and bool((compact(labels)[0] > CONSTANT).any())
