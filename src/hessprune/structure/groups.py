"""Values that describe removable structure: a `Group` is a set of coupled slices with one axis of units."""

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import counted, html_table, shortened, shown
from hessprune.operators.leaves import Role

T = TypeVar("T")

Kind = typing.Literal["channels", "neurons", "heads", "qk", "v", "embedding"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

Ignored = nn.Module | type[nn.Module] | str
"""An entry of `ignore`: a module, a type of modules, or a name pattern."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The part of one parameter or buffer that belongs to a group's units.

    A convolution `(O, I, kh, kw)` that emits the units is a *producer* along `dim=0`; one that reads them is a
    *consumer* along `dim=1`; biases, normalisation and other per-channel state *follow*.
    """

    param: str
    """State-dict name, such as `"layer1.0.conv1.weight"`."""
    dim: int
    """The axis that shrinks."""
    index: tuple[tuple[int, ...], ...]
    """Positions of each unit along `dim`: `U` rows of equal length."""
    role: Role

    def positions(self, units: Iterable[int] | None = None) -> Tensor:
        """Return the positions of some units (all by default) as an int64 tensor `(U, m)`."""
        rows = self.index if units is None else [self.index[unit] for unit in units]
        width = len(self.index[0]) if self.index else 0
        return torch.tensor(list(rows), dtype=torch.int64, device="cpu").reshape(-1, width)

    def __repr__(self) -> str:
        """Return tensor, axis and role, without positions."""
        return f"Slice({self.role} {self.param} dim {self.dim}, {len(self.index)} units{_width(self)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Literal:
    """An integer attribute of a module that counts units and falls with each removed unit.

    Examples: `groups` of a depthwise convolution, `num_groups` of a GroupNorm, `before` of a zero-padded shortcut.
    """

    module: str
    attribute: str
    counts: tuple[int, ...]
    """The part of the attribute's value that each unit accounts for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Units that can be removed one by one, and all slices that go with each unit.

    Removing unit `u` means deleting, for every slice, the positions `slice.index[u]` along `slice.dim`.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(hp.find_groups(net, torch.zeros(1, 4))[0])
        0: 8 neurons
          producer 0.weight dim 0
          follower 0.bias dim 0
          consumer 2.weight dim 1
    """

    name: str
    """The module that first produces the units, with a number if it produces several groups: unique within a model."""
    num_units: int
    slices: tuple[Slice, ...]
    literals: tuple[Literal, ...] = ()
    kind: Kind = "channels"
    """Channels of a convolution, neurons of a linear layer, heads of attention, widths of queries and keys (`"qk"`) or
    of values (`"v"`) within all heads of a layer, or the width of the embedding."""

    def slices_with_role(self, role: Role) -> tuple[Slice, ...]:
        """Return the slices of one role, in the model's order."""
        return tuple(piece for piece in self.slices if piece.role == role)

    def __repr__(self) -> str:
        """Return the name, the number and kind of the units, and the number of slices."""
        return f"Group({self.name!r}, {self.num_units} {self.kind}, {counted(len(self.slices), 'slice')})"

    def __str__(self) -> str:
        """Return one line for the group and one for each of its slices."""
        head = f"{self.name}: {self.num_units} {self.kind}"
        lines = [f"  {s.role:<8} {s.param} dim {s.dim}" + _width(s) for s in self.slices]
        return "\n".join([head, *lines])


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """An axis of a parameter that cannot shrink, with the reason."""

    param: str
    dim: int
    reason: str


class Groups(tuple[Group, ...]):
    """The prunable groups of a model, in the model's order, with what is `frozen` beside them.

    A plain tuple for every purpose. Printing gives a few lines, `table()` all of it, and `str(group)` one group.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> print(hp.find_groups(net, torch.zeros(1, 4)))
        Groups(1 group, 8 units)
        largest: 0 (8 neurons)
        frozen axes: 1 because it meets the model's input 'input', 2 because the model returns it
    """

    frozen: tuple[Frozen, ...]
    unreached: tuple[str, ...]
    """Layers that the example inputs do not reach, and that may read a group: they keep their width."""

    def __new__(
        cls, groups: Iterable[Group] = (), frozen: Iterable[Frozen] = (), unreached: Iterable[str] = ()
    ) -> "Groups":
        """Build the tuple and attach the frozen axes and the layers that are not reached."""
        self = super().__new__(cls, groups)
        self.frozen, self.unreached = tuple(frozen), tuple(unreached)
        return self

    def table(self) -> str:
        """Return all groups with their slices, then the frozen axes, grouped by reason."""
        lines = [str(group) for group in self]
        lines += [f"frozen: {reason}\n  " + ", ".join(axes) for reason, axes in self._reasons().items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return at most five lines: numbers of groups and units, the largest groups, the frozen axes."""
        largest = sorted(self, key=lambda group: -group.num_units)
        lines = [
            repr(self),
            "largest: " + shortened([f"{group.name} ({group.num_units} {group.kind})" for group in largest]),
        ]
        reasons = [f"{len(axes)} because {reason}" for reason, axes in self._reasons().items()]
        lines += [f"frozen axes: {shortened(reasons, 2)}"] if reasons else []
        lines += [f"not reached by the example inputs: {shortened(self.unreached, 3)}"] if self.unreached else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Return the numbers of groups and units."""
        units = sum(group.num_units for group in self)
        return f"Groups({counted(len(self), 'group')}, {counted(units, 'unit')})"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        rows = [[group.name, group.kind, group.num_units, len(group.slices)] for group in self]
        frozen = [[len(axes), reason] for reason, axes in self._reasons().items()]
        tables = html_table(["group", "kind", "units", "slices"], rows, repr(self))
        return tables + (html_table(["frozen axes", "reason"], frozen) if frozen else "")

    def _reasons(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for item in self.frozen:
            reasons.setdefault(item.reason, []).append(f"{item.param} dim {item.dim}")
        return reasons


class ByGroup(dict[str, T]):
    """A dict by group name that also takes a `Group` as key.

    Example:
        >>> import torch
        >>> from hessprune.structure.groups import ByGroup, Group
        >>> group = Group(name="conv1", num_units=2, slices=())
        >>> ByGroup(conv1=torch.ones(2))[group]
        tensor([1., 1.])
    """

    def __missing__(self, key: object) -> T:
        """Resolve a `Group` to its name."""
        if isinstance(key, Group) and key.name in self:
            return self[key.name]
        raise KeyError(key)


def check_per_unit(values: Mapping[str, Tensor], groups: Iterable[Group], name: str) -> ByGroup[Tensor]:
    """Return `values` as one float64 CPU tensor `(U,)` for each group, in the order of the groups.

    Raises:
        ArgumentError: A group is missing, or a tensor has the wrong shape or is not finite.
    """
    if not isinstance(values, Mapping):
        raise ArgumentError(
            f"`{name}` must be a tensor for each group by name, got {shown(values)}. Pass the result of hp.saliency."
        )
    lookup = ByGroup({key.name if isinstance(key, Group) else key: value for key, value in values.items()})
    result: ByGroup[Tensor] = ByGroup()
    for group in groups:
        if group.name not in lookup:
            raise ArgumentError(f"`{name}` must have an entry for group {group.name!r}, got {sorted(lookup)[:4]}….")
        value = lookup[group.name]
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"`{name}`[{group.name!r}] must be a tensor ({group.num_units},), got {shown(value)}. "
                "Pass torch.tensor(values)."
            )
        value = value.detach().to("cpu", torch.float64)
        if value.shape != (group.num_units,):
            shape = tuple(value.shape)
            raise ArgumentError(f"`{name}`[{group.name!r}] must have shape ({group.num_units},), got {shape}.")
        if not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"`{name}`[{group.name!r}] must be finite. Check the data and the model's weights.")
        result[group.name] = value
    return result


def producers(group: Group) -> Iterator[Slice]:
    """Yield the weight slices that emit the units; saliencies score these."""
    yield from group.slices_with_role("producer")


def _width(piece: Slice) -> str:
    """Return the number of positions of each unit, for printing."""
    width = len(piece.index[0]) if piece.index else 0
    return "" if width == 1 else f" ({width} each)"
