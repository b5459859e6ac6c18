"""Implants: what moderately salient units keep, and when a stand-in is worth its cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, check_range
from hessprune.structure.groups import Group, check_per_unit

Share = float | Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Implant:
    """Whether units keep a low-rank stand-in instead of disappearing, which ones, and of what form.

    Args:
        share: Share of the units that leave the full zone which are implanted: the most salient of them. `"auto"`
            decides for each unit, from how much of its output the stand-in explains and what it costs.
        rank: None puts a 1×1 filter in the place of a larger one. A number lets the implanted units of a layer share
            that many filters of the full kernel, and mix them: for 1×1 convolutions and linear layers, too.
        start: Weights of the stand-ins: `"fitted"` to the filters' outputs on calibration data, the `"centre"` of the
            kernel (of a given rank: the main components of the filters), or `"zero"`.

    Raises:
        ArgumentError: A value is out of range.
    """

    share: Share = "auto"
    rank: int | None = None
    start: Literal["fitted", "centre", "zero"] = "fitted"

    def __post_init__(self) -> None:
        if self.share != "auto":
            if isinstance(self.share, str):
                raise ArgumentError(f"`implant` must be a number from 0 to 1 or 'auto', got {self.share!r}.")
            check_range("implant", self.share, low=0, high=1)
        if self.rank is not None:
            check_range("rank", self.rank, low=1, integer=True)
        check_choice("start", self.start, ("fitted", "centre", "zero"))

    def __bool__(self) -> bool:
        """Whether anything is implanted at all."""
        return bool(self.share)


def as_implant(value: "Share | Implant") -> Implant:
    """Read the argument `implant`: a share, `"auto"`, or all settings."""
    return value if isinstance(value, Implant) else Implant(share=value)


def check_no_stand_ins(implant: Implant, budget: Budget) -> None:
    """Refuse stand-ins with a budget of time.

    Raises:
        ArgumentError: Both are asked for.
    """
    if implant and budget.is_latency:
        raise ArgumentError(
            f"`implant` must be 0 with `{budget}`, got {implant.share!r}: stand-ins are layers of their own, which the "
            "latency table does not time. Bound macs or params instead."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What implanting each unit costs, as shares of removing it; groups that cannot have stand-ins are absent."""

    share: Share
    loss: Mapping[str, np.ndarray]
    """Loss of implanting a unit / loss of removing it, `(U,)` by group."""
    saving: Mapping[str, float]
    """Cost that implanting a unit saves / cost that removing it saves, by group."""

    def is_worth_it(self, group: str) -> np.ndarray:
        """Return for which units implanting loses less per cost saved than removing, `(U,)`: the lower convex hull."""
        return self.loss[group] < self.saving[group] * (1 - 1e-9)

    def num_by_share(self, leaving: int) -> int:
        """Return how many of the units that leave the full zone are implanted because of a given share."""
        return 0 if self.share == "auto" else math.floor(self.share * leaving + 0.5)


def implant_options(
    groups: Sequence[Group],
    saliency: Mapping[str, Tensor],
    losses: Mapping[str, Tensor] | None,
    costs: CostModel,
    *,
    budget: Budget,
    carriers: Mapping[str, Sequence[str]],
    share: Share,
) -> Options:
    """Weigh implanting against removing.

    Args:
        groups: All groups that may change.
        saliency: Loss of removing each unit.
        losses: Loss of implanting each unit; needed for `"auto"`.
        costs: Exact costs, with the stand-ins' layers.
        budget: Which cost counts.
        carriers: For each group that can have stand-ins the layers that hold them.
        share: Of `Implant`.

    Raises:
        ArgumentError: No unit can have a stand-in though a share asks for it, or `"auto"` lacks the losses.
    """
    able = [group for group in groups if group.name in carriers]
    if not able and share != "auto":
        raise ArgumentError(
            f"`implant` must be 0 for this model, got {share!r}: no unit has a plain convolution with a kernel larger "
            "than 1. Pass Implant(rank=…) for 1×1 convolutions and linear layers."
        )
    if share != "auto":
        known = {group.name: np.ones(group.num_units) for group in able}
    elif losses is None:
        raise ArgumentError(
            "`implant`='auto' needs a saliency that knows what implanting loses. Pass `implant_losses(model, groups, "
            "batches, saliency)`, or a share."
        )
    else:
        found = check_per_unit(losses, able, "implant_losses")
        known = {group.name: _ratio(found[group.name], saliency[group.name]) for group in able}
    saving = {group.name: _saving(costs, group, budget.quantity) for group in able}
    return Options(share=share, loss=known, saving=saving)


def _ratio(implanted: Tensor, removed: Tensor) -> np.ndarray:
    """Share of the loss that a stand-in leaves, in [0, 1]; 1 for units that can go for nothing."""
    loss, whole = implanted.numpy(), removed.numpy()
    return np.clip(np.divide(loss, whole, out=np.ones(len(whole)), where=whole > 0), 0, 1)


def _saving(costs: CostModel, group: Group, quantity: str) -> float:
    """Saving of an implant as a share of a removal's, on average over the group, in [0, 1]."""
    saved = costs.spent(quantity) - costs.spent(quantity, {}, {group.name: group.num_units})
    per_unit = saved / group.num_units
    return min(max(per_unit / max(costs.saved_next(quantity)[group.name], 1e-12), 0.0), 1.0)
