"""A model that surgery made, beside the plan that led to it."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hessprune.costs.model import Cost
from hessprune.planning.chain import Change
from hessprune.surgery.checkpoint import save


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Result:
    """Base of what `hp.prune`, `hp.widen` and `hp.reallocate` return."""

    model: nn.Module
    """The new model, an ordinary module."""
    plan: Change
    """The decision: a `Plan`, a `Widening`, or several in a row."""
    cost_before: Cost
    """Of the model that came, for the example inputs."""
    cost_after: Cost
    """Of the new one."""

    def save(self, path: str | Path) -> Path:
        """Write model and plan into a folder, for `hp.load`."""
        return save(self.model, self.plan, path)

    def __str__(self) -> str:
        """Return the costs before and after, and what was decided."""
        return str(self.plan)

    def __repr__(self) -> str:
        """Return the same."""
        return str(self)
