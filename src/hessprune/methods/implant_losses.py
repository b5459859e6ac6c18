"""What is lost where a unit keeps a low-rank stand-in instead of disappearing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.checks import check_batches
from hessprune.foundation.modules import split_name
from hessprune.methods.values import Saliency
from hessprune.structure.carriers import stand_in_layers
from hessprune.structure.groups import Group, producers
from hessprune.surgery.implants.stand_ins import layer_sums, low_rank_fit, unexplained


def implant_losses(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Any,
    saliency: Mapping[str, Tensor],
    *,
    rank: int | None = None,
) -> Saliency:
    """Estimate the loss increase of implanting each unit, `(1 − R²_u) s_u`.

    `s_u` is the loss increase of removing the unit, `R²_u` the share of its variance on the calibration data that the
    best stand-in explains: a least-squares fit in closed form, in float64. A unit with several producing layers loses
    the mean over all of them, where those that keep their full filters lose nothing. One forward pass.

    Args:
        model: Left untouched.
        groups: From `find_groups`.
        batches: Calibration data, a re-iterable of `(inputs, targets)`.
        saliency: Loss increase of removing each unit.
        rank: As in `Implant`.

    Returns:
        The same saliency with `implant_losses`: `{group name: (U,)}` for the groups that can have stand-ins.

    Raises:
        DataError: `batches` cannot be read twice or is empty.

    Example:
        >>> from hessprune.structure.find import find_groups
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 1))
        >>> with torch.no_grad():
        ...     net[0].weight.zero_()[0, 0, 1, 1] = 1  # the first filter is a 1×1 filter already
        ...     net[0].weight[1, 0, 0, 0] = 1
        >>> x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> losses = implant_losses(net, find_groups(net, x), [(x, None)], {"0": torch.ones(2)}).implant_losses["0"]
        >>> losses.round(decimals=1)
        tensor([0., 1.], dtype=torch.float64)
    """
    check_batches(batches)
    carriers = stand_in_layers(model, groups, next(iter(batches))[0], rank=rank)
    layers = {layer: rank for names in carriers.values() for layer in names}
    lost = {}
    for layer, sums in layer_sums(model, layers, batches).items():
        own = sums.centred()
        lost[layer] = unexplained(own, low_rank_fit(own, rank)).cpu()
    by_name = {group.name: group for group in groups}
    return Saliency(
        saliency,
        provenance=getattr(saliency, "provenance", {}),
        per_cost=getattr(saliency, "per_cost", True),
        standard_error=getattr(saliency, "standard_error", None),
        interactions=getattr(saliency, "interactions", None),
        implant_losses={
            name: _share(by_name[name], layers, lost) * saliency[name].double().cpu()
            for name, layers in carriers.items()
        },
    )


def _share(group: Group, layers: Sequence[str], lost: Mapping[str, Tensor]) -> Tensor:
    """Mean over a group's producing slices of the share of each unit that a stand-in leaves unexplained, `(U,)`."""
    pieces = list(producers(group))
    total = torch.zeros(group.num_units, dtype=torch.float64)
    for piece in pieces:
        layer = split_name(piece.param)[0]
        if layer in layers and piece.dim == 0:
            total += lost[layer][piece.positions()].mean(1)
    return total / len(pieces)
