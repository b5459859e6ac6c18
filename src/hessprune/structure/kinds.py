"""Kinds of units: heads of attention, neurons of linear layers, channels of convolutions, embedding widths."""

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.foundation.modules import split_name
from hessprune.structure.groups import KINDS, Frozen, Groups, Kind, Slice

NOT_ASKED = "units of its kind stay, on request"


def kind_of(model: nn.Module, pieces: Iterable[Slice], known: Kind | None = None) -> Kind:
    """Return the kind of the units that some slices hold.

    Args:
        model: The model of the slices.
        pieces: All slices of a group.
        known: What operators say: that a norm computes its statistics over the units, or that the units meet in a
            product of queries with keys, or of its result with values.
    """
    if known:
        return known
    produced = [piece for piece in pieces if piece.role == "producer"]
    owners = [model.get_submodule(split_name(piece.param)[0]) for piece in produced]
    if owners and all(isinstance(owner, nn.Embedding) for owner in owners):
        return "embedding"
    return "neurons" if produced and all(_is_matrix(model, piece) for piece in produced) else "channels"


def check_kinds(units: Any) -> None:
    """Raise unless this is None or names kinds of units.

    Raises:
        ArgumentError: It does not.
    """
    if units is not None and not (isinstance(units, tuple | list | set | frozenset) and units and {*units} <= {*KINDS}):
        raise ArgumentError(
            f"`units` must be a tuple of kinds of units, got {shown(units)}. Pass some of {KINDS}, or None."
        )


def only(groups: Groups, kinds: Collection[Kind] | None) -> Groups:
    """Return the groups of some kinds, all for None; the axes of the others are frozen.

    Raises:
        ArgumentError: There is no group of these kinds.
    """
    if kinds is None:
        return groups
    kept = [group for group in groups if group.kind in kinds]
    if not kept:
        there = tuple(kind for kind in KINDS if any(group.kind == kind for group in groups))
        reasons = "; ".join([*dict.fromkeys(item.reason for item in groups.frozen)][:3])
        others = f"; other axes stay because: {reasons}" if reasons else ""
        raise ArgumentError(f"`units` must name kinds of units that the model has, got {shown(tuple(kinds))}. "
                            f"Pass some of {there}{others}.")  # fmt: skip
    others = [piece for group in groups if group.kind not in kinds for piece in group.slices]
    frozen = (Frozen(param=p.param, dim=p.dim, reason=NOT_ASKED) for p in others)
    return Groups(kept, (*groups.frozen, *frozen), groups.unreached)


def _is_matrix(model: nn.Module, piece: Slice) -> bool:
    """Return whether a weight is a matrix, or a stack of them, one for each expert: their first axis is no unit.

    Convolutions of one dimension have three axes, too.
    """
    owner, name = split_name(piece.param)
    module = model.get_submodule(owner)
    rank = getattr(module, name).dim()
    return rank == 2 or (rank == 3 and piece.dim > 0 and not isinstance(module, nn.ConvTranspose1d))
