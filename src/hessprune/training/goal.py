"""The goal of a run of fine-tuning."""

from dataclasses import dataclass

from torch import nn

from hessprune.deploy.evaluation import Metric
from hessprune.foundation.losses import LossFn


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The loss that is minimised, the metric that chooses, and the teacher."""

    loss_fn: LossFn | None
    metric: Metric | None
    teacher: nn.Module | None
    together: bool
    """True if all processes of the group train this model."""
