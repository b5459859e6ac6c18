"""Plans and widenings in a row, as one value that is saved like a plan."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from hessprune.costs.model import Cost
from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.planning.composition import check_follows
from hessprune.planning.inputs import InputSpec

if TYPE_CHECKING:
    from hessprune.planning.plan import Plan
    from hessprune.planning.widening import Widening

Step = Union["Plan", "Widening"]
Change = Union["Plan", "Widening", "Chain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Prunings and widenings, each for the model that the one before gives.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, batches = torch.zeros(1, 4), [torch.randn(16, 4)]
        >>> smaller = hp.prune(net, x, batches, budget=hp.Budget(macs=0.5))
        >>> wider = hp.widen(smaller.model, x, {"0": 6})
        >>> smaller.plan.then(wider.plan)
        Chain(Plan(Budget(macs=0.5), 4 of 8 units removed), Widening(2 new units in 1 group))
    """

    steps: tuple[Step, ...]

    @property
    def last(self) -> Step:
        """The last step: it gives the shapes of the final model."""
        return self.steps[-1]

    @property
    def cost_before(self) -> Cost:
        """Cost of the dense model."""
        return self.steps[0].cost_before

    @property
    def cost_after(self) -> Cost:
        """Cost of the final model."""
        return self.last.cost_after

    @property
    def inputs(self) -> InputSpec:
        """Shapes of the example inputs."""
        return self.steps[0].inputs

    def then(self, next_change: Change) -> "Chain":
        """Return these steps and then another plan or widening.

        Raises:
            ArgumentError: It was made for another model than the one that the last step gives.
        """
        return joined(self, next_change)

    def to_json(self) -> str:
        """Return the steps as JSON; `hp.load` reads it."""
        return json.dumps({"kind": "chain", "steps": [json.loads(step.to_json()) for step in self.steps]}, indent=1)

    def __str__(self) -> str:
        """Return one line for each step, and the costs at both ends."""
        return "\n".join([*map(repr, self.steps), f"{self.cost_before} -> {self.cost_after}"])

    def __repr__(self) -> str:
        """Return the steps in one line."""
        return f"Chain({', '.join(map(repr, self.steps))})"


def steps_of(change: Change) -> tuple[Step, ...]:
    """Return the plans and widenings of a change, in order."""
    return change.steps if isinstance(change, Chain) else (change,)


def joined(first: Change, second: Change) -> Chain:
    """Return two changes in a row.

    Raises:
        ArgumentError: The second is none, or was made for another model than the one that the first gives.
    """
    if not (hasattr(second, "cost_before") and hasattr(second, "to_json")):  # a result has costs, too
        raise ArgumentError(
            f"`next_plan` must be a Plan or a Widening, got {shown(second)}. Pass `plan` of the result of hp.prune "
            "or hp.widen."
        )
    check_follows(first, second)
    return Chain(steps=(*steps_of(first), *steps_of(second)))
