"""What could be pruned in a model, and what one unit costs: the value behind `hessprune inspect`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprune.costs.model import Cost, CostModel
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.formatting import first_line, shown
from hessprune.foundation.modules import forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import describe
from hessprune.lab.models import build_model, load_weights
from hessprune.lab.models.zoos import ZooName, example_of
from hessprune.structure.find import find_groups
from hessprune.structure.groups import KINDS, Group, Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRow:
    """One group: its size, what removing one unit of the dense model saves, and the layers it ties together."""

    name: str
    units: int
    macs: int
    params: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    kind: Kind = "channels"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """The prunable groups of a model, its cost, and the frozen axes by reason."""

    model: str
    inputs: str
    """Dtypes and shapes that the cost refers to."""
    cost: Cost
    groups: tuple[GroupRow, ...]
    frozen: Mapping[str, tuple[str, ...]]

    def by_kind(self) -> dict[Kind, tuple[GroupRow, ...]]:
        """Return the groups of each kind that the model has."""
        kinds: list[Kind] = [kind for kind in KINDS if any(row.kind == kind for row in self.groups)]
        return {kind: tuple(row for row in self.groups if row.kind == kind) for kind in kinds}

    @property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(row.units for row in self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def inspect_model(
    name: str,
    *,
    input_shape: str | None = None,
    num_classes: int | None = None,
    weights: Path | str | None = None,
    ignore: tuple[str, ...] = (),
    units: tuple[Kind, ...] | None = None,
) -> Inspection:
    """Build a model by name and look into it.

    Args:
        name: As for `build_model`: a name of the registry, `hf:FOLDER`, `timm:NAME`, `package.module:factory`, …
        input_shape: Of one sample, such as `"3,32,32"`, or the number of tokens of a sentence; by default what a
            model of another package is made for, and `"3,32,32"` elsewhere.
        num_classes: Outputs, for factories that take it; as in the package, or 10, by default.
        weights: A checkpoint that must fit.
        ignore: Modules or parameters to leave alone.
        units: Kinds of units; see `find_groups`.

    Raises:
        ArgumentError: The shape cannot be read, or the name is unknown.
        DataError: The model does not take samples of that shape.
        CheckpointError: The weights do not fit.
        UnsupportedModelError: The model cannot be captured.
    """
    is_foreign = ZooName.read(name) is not None
    shape = None if input_shape is None and is_foreign else _parsed(input_shape or "3,32,32")
    channels = None if is_foreign and (shape is None or len(shape) != 3) else (shape or (3,))[0]
    model = build_model(name, num_classes=num_classes, in_channels=channels)
    if weights is not None:
        load_weights(model, weights)
    example = example_of(model, shape) if is_foreign else torch.zeros(1, *(shape or ()), device="cpu")
    if shape is not None:
        _check_shape(model, example, shape)
    return inspection_of(name, model, example, ignore, units=units)


def inspection_of(
    name: str,
    model: nn.Module,
    example_inputs: Any,
    ignore: tuple[str, ...] = (),
    *,
    units: tuple[Kind, ...] | None = None,
) -> Inspection:
    """Find the groups of a model and price one unit of each."""
    groups = find_groups(model, example_inputs, ignore, compare=True, units=units)
    costs = CostModel(model, example_inputs, groups)
    macs, params = costs.saved_next("macs"), costs.saved_next("params")
    frozen: dict[str, list[str]] = {}
    for item in groups.frozen:
        frozen.setdefault(item.reason, []).append(f"{item.param} dim {item.dim}")
    return Inspection(
        model=name,
        inputs=describe(example_inputs),
        cost=costs.dense,
        groups=tuple(_row(group, round(macs[group.name]), round(params[group.name])) for group in groups),
        frozen={reason: tuple(names) for reason, names in frozen.items()},
    )


def _row(group: Group, macs: int, params: int) -> GroupRow:
    emitting = tuple(piece.param.removesuffix(".weight") for piece in group.slices_with_role("producer"))
    reading = tuple(piece.param.removesuffix(".weight") for piece in group.slices_with_role("consumer"))
    return GroupRow(
        name=group.name,
        units=group.num_units,
        macs=macs,
        params=params,
        producers=emitting,
        consumers=reading,
        kind=group.kind,
    )


def _check_shape(model: nn.Module, example: Any, shape: tuple[int, ...]) -> None:
    try:
        with torch.no_grad(), evaluation_mode(model):
            forward(model, example)
    except DataError as error:
        raise DataError(
            f"`input_shape` must be that of one sample that the model takes, got {','.join(map(str, shape))}: "
            f"{first_line(error.__cause__ or error)}. Write for example 3,32,32"
        ) from error


def _parsed(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ArgumentError(f"`input_shape` must be positive integers with commas, got {shown(text)}. Write 3,32,32")
    return shape
