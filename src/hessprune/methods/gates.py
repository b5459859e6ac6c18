"""Criteria from activation × gradient: Taylor, SOSP-H, SOSP-I, and the joint criterion."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.curvature.correlation import Correlation, gate_correlation
from hessprune.curvature.direction import weight_curvature
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.results import ParamSlice
from hessprune.foundation.symmetric import Factor, Interactions
from hessprune.methods.scores import Scores, Settings
from hessprune.operators.leaves import Role
from hessprune.structure.groups import Group


def taylor(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    """Mean over samples of `|∂L_n/∂g_u|`, the first-order change of each sample's loss when the gate closes.

    References:
        Molchanov et al. (2017), Pruning Convolutional Neural Networks for Resource Efficient Inference,
        arXiv 1611.06440.
    """
    found, keys = _correlation(model, groups, batches, _first_order(settings), "consumer")
    return Scores(values=_split(found.absolute_gradient, keys, groups))


def sosp_h(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    """`λ(s) = |θ_sᵀ g| + ½ |θ_sᵀ (H θ_struc)|`: one Hessian–vector product sees all interactions at once.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395.
    """
    found, slices = _correlation(model, groups, batches, _first_order(settings), "producer")
    second = weight_curvature(model, slices, batches, loss_fn=settings.loss_fn, precision=settings.precision)
    first = _split(found.gradient.abs(), slices, groups)
    return Scores(
        values={name: value + second[name].abs() / 2 if name in second else value for name, value in first.items()}
    )


def sosp_i(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    """SOSP-I as published: `Q_ss' = ½ |θ_sᵀ H θ_s'| + |θ_sᵀ g| δ_ss'` with the Gauss–Newton `H`, chosen greedily.

    References:
        Nonnenmacher et al. (2022), SOSP, arXiv 2110.11395.
    """
    found, keys = _correlation(model, groups, batches, settings, "producer")
    alone = found.gradient.abs() + found.diagonal / 2
    return _scores(alone, found.quadratic.abs(), found, keys, groups)


def joint(model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings) -> Scores:
    """Signed interactions of gates at the consumers: removing `M` costs `½ 1_Mᵀ Q 1_M`, whoever cancels whom.

    Unlike SOSP-I, closing a gate is exactly removing the unit (biases and normalisation included), and units whose
    effects cancel are recognised as cheap together.
    """
    found, keys = _correlation(model, groups, batches, settings, "consumer")
    return _scores(found.diagonal / 2, found.quadratic, found, keys, groups)


def role_slices(groups: Sequence[Group], role: Role) -> dict[str, list[ParamSlice]]:
    """Return the slices of one role as curvature wants them; groups without any are left out."""
    slices = {
        group.name: [ParamSlice(param=p.param, dim=p.dim, index=p.positions()) for p in group.slices_with_role(role)]
        for group in groups
    }
    return {name: pieces for name, pieces in slices.items() if pieces}


def _first_order(settings: Settings) -> Settings:
    """Return settings under which all curvature is left out: only the gradient is computed."""
    return replace(settings, options=replace(settings.options or TraceOptions(), tolerance=1.0))


def _correlation(
    model: nn.Module, groups: Sequence[Group], batches: Any, settings: Settings, role: Role
) -> tuple[Correlation, dict[str, list[ParamSlice]]]:
    slices, options = role_slices(groups, role), settings.options
    found = gate_correlation(
        model, slices, batches, loss_fn=settings.loss_fn, precision=settings.precision, options=options
    )
    return found, slices


def _scores(
    alone: Tensor, together: Interactions, found: Correlation, keys: Mapping[str, Any], groups: Sequence[Group]
) -> Scores:
    """Lay units of the measured groups out over all groups; say what a factor leaves out."""
    owned = torch.cat([torch.full((group.num_units,), group.name in keys) for group in groups])
    facts = {}
    if isinstance(together, Factor):
        facts = {"interaction_rows": len(together.phi), "interactions_dropped": found.dropped}
    return Scores(values=_split(alone, keys, groups), interactions=together.spread(owned).simplest(), facts=facts)


def _split(flat: Tensor, keys: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Tensor]:
    """Cut `(U,)` over the measured groups into one tensor per group; a group without gates costs nothing."""
    parts = dict(zip(keys, flat.split([group.num_units for group in groups if group.name in keys]), strict=True))
    return {group.name: parts.get(group.name, torch.zeros(group.num_units).double()) for group in groups}
