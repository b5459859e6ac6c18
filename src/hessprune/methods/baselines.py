"""What every result must be compared with: chance, the size of the weights, and the scale of BatchNorm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.methods.slices import weight_rows
from hessprune.structure.groups import Group, producers


def random(groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    """Random order within each group, the same share of every group: `(π(u) + ½) / U`, uniform over layers.

    Example:
        >>> group = Group(name="conv1", num_units=4, slices=())
        >>> random([group], seed=0)["conv1"].sort().values
        tensor([0.1250, 0.3750, 0.6250, 0.8750], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    return {g.name: (torch.randperm(g.num_units, generator=generator) + 0.5).double() / g.num_units for g in groups}


def magnitude(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Mean squared weight of the unit, summed over its producers: `Σ ‖w_u‖² / numel(w_u)`."""
    values = {}
    for group in groups:
        scores = [weight_rows(model, piece).square().mean(1).cpu() for piece in producers(group)]
        values[group.name] = torch.stack(scores).sum(0) if scores else torch.zeros(group.num_units).double()
    return values


def bn_scale(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Sum of `|γ|` over the unit's BatchNorm layers.

    Raises:
        ArgumentError: A group has no BatchNorm.

    References:
        Liu et al. (2017), Learning Efficient Convolutional Networks through Network Slimming, arXiv 1708.06519.
    """
    norms = nn.modules.batchnorm._BatchNorm
    scales = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, norms)}
    values = {}
    for group in groups:
        pieces = [p for p in group.slices_with_role("follower") if p.param in scales]
        if not pieces:
            raise ArgumentError(
                f"method 'bn_scale' must find a BatchNorm in every group, got none in {group.name!r}. "
                f"Use another method, or leave the group out with `ignore`."
            )
        weights = [model.get_parameter(p.param).detach().double().abs().cpu()[p.positions()].sum(1) for p in pieces]
        values[group.name] = torch.stack(weights).sum(0)
    return values
