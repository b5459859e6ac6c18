"""A task: everything that decides one pruning, checked before the long work starts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget, check_budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.target import LatencyTarget
from hessprune.errors import ArgumentError
from hessprune.foundation.arrival import arrived
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches, check_finite_parameters
from hessprune.foundation.files import sha256
from hessprune.foundation.formatting import shown
from hessprune.foundation.losses import loss_name
from hessprune.foundation.named_losses import loss_of
from hessprune.foundation.options import check_flag, check_type
from hessprune.foundation.trees import leading_size
from hessprune.layers.chains import find_stack
from hessprune.layers.input_moments import InputMoments
from hessprune.methods.method import Method
from hessprune.methods.scoring import check_seed
from hessprune.objectives.choice import Chosen
from hessprune.planning.implants import Implant, check_no_stand_ins
from hessprune.planning.ranking import Ranking
from hessprune.pruning.memory import Memory, NoMemory
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is pruned, on which data, to which budget, and how."""

    model: nn.Module
    example_inputs: Any
    batches: Rereadable
    budget: Budget
    method: Method
    loss_fn: Any = None
    outputs: Chosen = None
    implant: Implant = field(default_factory=lambda: Implant(share=0.0))
    compensate: bool = True
    sequential: bool | str | Path = False
    """True, or a folder for what is finished: survivors are refitted block by block."""
    ranking: Ranking = field(default_factory=Ranking)
    seed: int = 0
    groups: Sequence[Group] = ()
    """The groups of the model, without ignored layers; `ready` finds them."""
    memory: Memory = field(default_factory=NoMemory)
    """Keeps the finished stages; `hp.prune` keeps none."""
    moments: Mapping[str, InputMoments] | None = None
    """Moments of layer inputs by weight, from which survivors are refitted without data."""
    measured: dict[str, InputMoments] = field(default_factory=dict, repr=False)
    """Receives the moments that scoring measures anyway, where a refit by them may come out ahead."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss_fn", loss_of(self.loss_fn))
        check_budget(self.budget)
        check_type("ranking", self.ranking, Ranking, "hp.Ranking(round_to=8)")
        check_flag("compensate", self.compensate)
        self._check_sequential()
        check_no_stand_ins(self.implant, self.budget)
        check_seed(self.seed, self.method)

    def _check_sequential(self) -> None:
        """Raise unless a refit block by block is possible.

        Raises:
            ArgumentError: `sequential` is no folder, or there will be no refit, or one of implants.
        """
        if not isinstance(self.sequential, bool | str | Path) or not str(self.sequential).strip():
            raise ArgumentError(
                f"`sequential` must be True, False or a folder, got {shown(self.sequential)}. Write sequential=True."
            )
        if self.sequential is not False and not self.compensate:
            raise ArgumentError(
                "`sequential` must come with a refit, which is what it does block by block, got compensate=False. "
                "Leave one of them out."
            )
        if self.sequential is not False and self.implant:
            raise ArgumentError(
                "`sequential` must come without implants, which are fitted to the whole model, got a share of "
                f"{self.implant.share}. Leave one of them out."
            )

    @property
    def folder(self) -> Path | None:
        """The folder for what is finished, if one is given."""
        return None if isinstance(self.sequential, bool) else Path(self.sequential)

    def ready(self) -> "Task":
        """Check the data and the weights, then return the task with the groups of its model.

        Raises:
            DataError: The batches are one-shot or empty.
            NumericalError: Weights are not finite.
            UnsupportedModelError: The model cannot be captured, or has no units that can go.
            ArgumentError: The ranking asks for kinds of units that the model has not.
        """
        check_batches(self.batches)
        model = arrived(self.model)
        check_finite_parameters(model)
        groups = find_groups(
            self.model,
            self.example_inputs,
            self.ranking.ignore,
            compare=True,
            gqa=self.ranking.gqa,
            units=self.ranking.units,
        )
        if self.sequential is not False:
            find_stack(model, next(iter(self.batches))[0])
        return replace(self, model=model, groups=groups)

    def scoring_settings(self) -> dict[str, Any]:
        """Return what decides the saliencies, besides model and data; JSON values."""
        return {
            "method": self.method.scored_as,
            "loss": "dense outputs" if self.loss_fn is None else loss_name(self.loss_fn),
            "seed": self.seed,
            **({} if self.outputs is None else {"outputs": self._shares()}),
        }

    def target_settings(self, budget: Budget) -> Any:
        """Return what the milliseconds of a budget of time depend on; a JSON value."""
        if isinstance(budget.target, LatencyTable):
            return sha256(budget.target.to_json())
        target = budget.target or LatencyTarget()
        return target.facts(self.model, target.batch_size or leading_size(self.example_inputs))

    def _shares(self) -> dict[str, float]:
        return dict(self.outputs) if isinstance(self.outputs, Mapping) else dict.fromkeys(self.outputs or (), 1.0)

    def planning_settings(self, limit: Budget, *, last: bool) -> dict[str, Any]:
        """Return what decides the plan of the step that ends at `limit`, besides model and data; JSON values."""
        settings: Mapping[str, Any] = {
            "budget": {limit.quantity: limit.value},
            "ranking": self.ranking.to_json(),
            "implant": asdict(self.implant) if last and self.implant else None,
            "sequential": self.sequential is not False,
            "last": last,
        }
        if limit.is_latency:
            settings = {**settings, "target": self.target_settings(limit)}
        return self.scoring_settings() | dict(settings)
