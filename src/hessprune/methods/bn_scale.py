"""Network slimming: the scale of BatchNorm."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.sharded import whole_tensor
from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.structure.groups import Group


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class BNScale(Method):
    """Sum of the absolute scales `|γ_u|` over the unit's BatchNorm layers.

    Data are not read. Every group must have a BatchNorm, else `score` raises an `ArgumentError`.

    References:
        Liu et al. (2017), Learning Efficient Convolutional Networks through Network Slimming, arXiv 1708.06519.

    Example:
        >>> import hessprune as hp
        >>> hp.BNScale()
        BNScale()
    """

    name = "bn_scale"
    needs = None

    def needs_whole(self) -> str | None:
        """Return None: one weight after another is gathered."""
        return None

    def score(self, scoring: Scoring) -> Scores:
        """Read the scales."""
        norms = nn.modules.batchnorm._BatchNorm
        names = {f"{name}.weight" for name, module in scoring.model.named_modules() if isinstance(module, norms)}
        return Scores(values={group.name: _scales(scoring.model, group, names) for group in scoring.groups})


def _scales(model: nn.Module, group: Group, names: set[str]) -> Tensor:
    """Sum the scales over the normalising slices of one group.

    Raises:
        ArgumentError: The group has no BatchNorm.
    """
    pieces = [piece for piece in group.slices_with_role("follower") if piece.param in names]
    if not pieces:
        raise ArgumentError(
            f"method 'bn_scale' must find a BatchNorm in every group, got none in {group.name!r}. "
            f"Use another method, or leave the group out with find_groups(…, ignore=({group.name!r},))."
        )
    scales = [
        whole_tensor(model.get_parameter(p.param).detach()).double().abs().cpu()[p.positions()].sum(1) for p in pieces
    ]
    return torch.stack(scales).sum(0)
