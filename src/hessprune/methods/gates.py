"""Gates: one multiplicative factor for each unit, and the derivatives of the loss in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.gate_interactions import GateDerivatives, gate_interactions
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.results import ParamSlice
from hessprune.foundation.symmetric import Factor, SymmetricMatrix
from hessprune.methods.method import Scores, Scoring
from hessprune.methods.slices import without_tables
from hessprune.operators.leaves import Role
from hessprune.structure.groups import Group

Slices = Mapping[str, Sequence[ParamSlice]]


def role_slices(groups: Sequence[Group], role: Role, model: nn.Module | None = None) -> dict[str, list[ParamSlice]]:
    """Return the slices of one role by group, as curvature reads them; groups without any are left out.

    With a model, tables of embeddings are left out, too, where layers emit the same units.
    """
    pieces = {group.name: group.slices_with_role(role) for group in groups}
    if model is not None:
        pieces = {name: tuple(without_tables(model, of_group)) for name, of_group in pieces.items()}
    slices = {
        name: [ParamSlice(param=p.param, dim=p.dim, index=p.positions()) for p in of_group]
        for name, of_group in pieces.items()
    }
    return {name: pieces for name, pieces in slices.items() if pieces}


def gate_slices(model: nn.Module, groups: Sequence[Group], role: Role) -> dict[str, list[ParamSlice]]:
    """Return the slices of one role by group; those of the other role for a group without any, as of tied weights."""
    other: Role = "producer" if role == "consumer" else "consumer"
    wanted, others = (role_slices(groups, each, model) for each in (role, other))
    both = {group.name: wanted.get(group.name) or others.get(group.name, []) for group in groups}
    return {name: pieces for name, pieces in both.items() if pieces}


def gate_derivatives(
    scoring: Scoring, role: Role, *, precision: str, options: TraceOptions, loss_fn: Any = None
) -> tuple[GateDerivatives, Slices]:
    """Return the derivatives of the loss in gates on all slices of one role, and these slices."""
    slices = gate_slices(scoring.model, scoring.groups, role)
    loss_fn = scoring.loss_fn if loss_fn is None else loss_fn
    return (
        gate_interactions(
            scoring.model, slices, scoring.batches, loss_fn=loss_fn, precision=precision, options=options
        ),
        slices,
    )


def gradient_options(memory_limit: int | None) -> TraceOptions:
    """Return options under which all curvature is left out and the gradient alone is computed."""
    return TraceOptions(tolerance=1.0, memory_limit=memory_limit)


def interacting_scores(
    alone: Tensor, together: SymmetricMatrix, derivatives: GateDerivatives, slices: Slices, groups: Sequence[Group]
) -> Scores:
    """Lay the units of the measured groups out over all groups; state the share that a factor leaves out."""
    owned = torch.cat([torch.full((group.num_units,), group.name in slices, device="cpu") for group in groups])
    facts: dict[str, Any] = {"num_backwards": derivatives.num_backwards}
    if isinstance(together, Factor):
        facts |= {"interaction_rows": len(together.phi), "interactions_dropped": derivatives.dropped}
    return Scores(values=by_group(alone, slices, groups), interactions=together.spread(owned).simplest(), facts=facts)


def by_group(flat: Tensor, slices: Slices, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Cut `(U,)` over the measured groups into one tensor per group; a group without gates costs nothing."""
    sizes = [group.num_units for group in groups if group.name in slices]
    parts = dict(zip(slices, flat.split(sizes), strict=True))
    return {group.name: parts.get(group.name, torch.zeros(group.num_units, device="cpu").double()) for group in groups}
