"""The setting `implant`: the share of leaving units that keep a stand-in, and the form of the stand-ins."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.formatting import shown
from hessprune.structure.carriers import stand_in_layers
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Implant:
    """Units of moderate saliency keep a low-rank stand-in for their filters, where others disappear.

    Args:
        share: Share of the units that would leave which keep a stand-in: the most salient of them.
        rank: None puts a 1×1 filter in the place of a larger one. With a number, the implanted units of a layer share
            that many filters of the full kernel and mix them; this exists for 1×1 convolutions and linear layers too.
        start: Weights of the stand-ins: `"fitted"` to the outputs of the filters on calibration data, or `"zero"`.

    Raises:
        ArgumentError: A value is out of range.

    References:
        Yu et al. (2022), Hessian-aware pruning and optimal neural implant, arXiv:2101.08940.

    Example:
        >>> import hessprune as hp
        >>> hp.Implant(share=0.5, rank=4)
        Implant(share=0.5, rank=4, start='fitted')
    """

    share: float
    rank: int | None = None
    start: Literal["fitted", "zero"] = "fitted"

    def __post_init__(self) -> None:
        check_range("implant", self.share, low=0, high=1)
        if self.rank is not None:
            check_range("rank", self.rank, low=1, integer=True)
        check_choice("start", self.start, ("fitted", "zero"))

    def __bool__(self) -> bool:
        """Return True where any unit is implanted."""
        return self.share > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ImplantShare:
    """The share of leaving units that are implanted, of the groups that can hold stand-ins."""

    share: float
    groups: Collection[str]
    """Names of these groups."""

    def number(self, num_leaving: int) -> int:
        """Return how many of the leaving units of these groups are implanted, rounded to the nearest."""
        return math.floor(self.share * num_leaving + 0.5)


def as_implant(value: float | Implant) -> Implant:
    """Return the argument `implant` as a setting; a number is a share."""
    return value if isinstance(value, Implant) else Implant(share=value)


def check_no_stand_ins(implant: Implant, budget: Budget) -> None:
    """Refuse stand-ins together with a budget of time.

    Raises:
        ArgumentError: Both are set.
    """
    if implant and budget.is_latency:
        raise ArgumentError(
            f"`implant` must be 0 with `{budget.without_target()}`, got {shown(implant.share)}: stand-ins are layers "
            "of their own, which the latency table does not time. Bound macs or params instead."
        )


def carrying_layers(
    model: nn.Module, groups: Sequence[Group], example_inputs: Any, implant: Implant
) -> Mapping[str, Sequence[str]]:
    """Return by group name the layers that can hold stand-ins; nothing if none are asked for.

    Raises:
        ArgumentError: Stand-ins are asked for, and no layer can hold one.
    """
    carriers = stand_in_layers(model, groups, example_inputs, rank=implant.rank) if implant else {}
    if implant and not carriers:
        advice = (
            "Leave `implant` out."
            if implant.rank
            else ("Pass Implant(share=…, rank=…) for 1×1 convolutions and linear layers, or leave `implant` out.")
        )
        raise ArgumentError(
            f"`implant` must be 0 for this model, got {implant.share:g}: no unit has a plain convolution with a kernel "
            f"larger than 1{' or a linear layer' if implant.rank else ''}. {advice}"
        )
    return carriers
