"""What a method is given besides model, groups and data, and what it gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from hessprune.foundation.symmetric import Interactions


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a method may depend on besides model, groups and data."""

    seed: int = 0
    estimator: str = "exact"
    precision: str = "fp32"
    loss_fn: Any = None
    temperature: float | Literal["auto"] = "auto"
    """Of the softmax in which `joint` sees a cross-entropy. `"auto"`: where the survivors will not compensate, the
    lowest from 1 on at which half of the samples carry its curvature, for training images that a network is sure of
    have none at 1; where they will, 1. Published methods see the loss as it is."""
    compensated: bool = True
    """Whether the survivors will be refitted; `joint` then judges removals by what is left to pay after that."""
    options: Any = None
    """`TraceOptions`: number of probes, stopping rule, memory limit, rows of a factor of interactions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Saliencies by group, and whatever else the method knows."""

    values: Mapping[str, Tensor]
    standard_error: Mapping[str, Tensor] | None = None
    interactions: Tensor | Interactions | None = None
    """`(U, U)` over the units of all groups: what removing one adds to the cost of removing another; whole, or as a
    `Factor`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the provenance."""
