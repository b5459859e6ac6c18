"""`hp.reallocate`: take units where they matter least, and put as much cost where a unit matters most."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hessprune.bottlenecks.find import find_bottlenecks
from hessprune.bottlenecks.values import Bottlenecks
from hessprune.bottlenecks.widths import LARGEST_GROWTH, narrowest_within, scaled
from hessprune.costs.budget import Budget, check_budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError, VerificationError
from hessprune.foundation.arrival import arrived
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.trees import leading_size
from hessprune.methods.method import Method
from hessprune.methods.text import as_method
from hessprune.planning.chain import Chain
from hessprune.planning.ranking import Ranking, check_at_once
from hessprune.planning.reachable import least_left
from hessprune.pruning.prune import prune
from hessprune.pruning.task import Task
from hessprune.structure.find import find_groups
from hessprune.surgery.result import Result
from hessprune.surgery.widening import Start, WidenResult, grows, widen

DRAWS = 3
"""Of the calibration samples, for the bottlenecks."""
LEAST_MOVED = 0.01
FIXED = ("qk", "v", "embedding")
"""Kinds of units that `hp.widen` does not know."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Reallocation(Result):
    """A model of the same cost with other widths, and how it came about."""

    plan: Chain
    """The pruning and the widening after it."""
    bottlenecks: Bottlenecks


@torch.inference_mode(False)
def reallocate(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    *,
    budget: Budget | None = None,
    moved: float = 0.2,
    method: str | Method = "joint",
    loss_fn: Any = None,
    start: Start = "split",
    ranking: Ranking | None = None,
    seed: int = 0,
) -> Reallocation:
    """Prune the least useful units and widen the narrowest groups, at equal cost, in one plan.

    The pruning takes the share `moved` of the budget, or of the model's cost where that is less. Then groups grow, each
    by an equal factor of its width, until the cost is back at the budget: those whose verdict is `"bottleneck"`, or the
    narrowest quarter where there are none, and the next narrowest ones once these have four times the width that they
    came with. Groups that cannot grow, such as the channels of tied embeddings, stay; where the others cannot take the
    whole budget, a warning says so. Train afterwards: the new units know what their parents know.

    Args:
        model: A trained model; left untouched.
        example_inputs: One batch as the model takes it.
        batches: Calibration data, as for `hp.prune`.
        budget: What the result may cost, in `macs` or `params`, also more than today as an absolute number; all
            parameters of the model by default.
        moved: Share of that cost that moves.
        method: The criterion that decides what goes and what is narrow.
        loss_fn: A loss of `(output, targets)`, or `"next_word"`, as for `hp.prune`.
        start: Weights of the new units, as for `hp.widen`.
        ranking: Floors and layers that stay.
        seed: For whatever is drawn at random.

    Returns:
        The new model, the two steps as one plan, and the bottlenecks.

    Raises:
        ArgumentError: The budget bounds neither MACs nor parameters, or `ranking` asks for steps, for layers that are
            alike, or for kinds of units that do not grow.
        BudgetError: The pruning cannot take so much of the model, or leaves one unit in each group; or the budget is
            more than all groups with four times their width cost.
        HessPruneError: One clear line: another argument, the data or the model does not fit.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)
        ... )
        >>> batches = [(torch.randn(96, 6), torch.arange(96) % 3)]
        >>> result = hp.reallocate(net, torch.zeros(1, 6), batches)
        >>> result.cost_after.params <= result.cost_before.params, result.model[0].out_features > 4
        (True, True)
    """
    check_range("moved", moved, low=LEAST_MOVED, high=0.9)
    check_choice("start", start, ("split", "fresh"))
    _check_ranking(ranking or Ranking())
    budget = Budget(params=1.0) if budget is None else budget
    check_budget(budget)
    quantity = budget.quantity
    if quantity not in ("macs", "params"):
        raise ArgumentError(f"`budget` must bound macs or params, got {budget}. Pass hp.Budget(params=1.0).")
    task = Task(
        model=model,
        example_inputs=example_inputs,
        batches=Rereadable.of(batches, model),
        budget=Budget.keeping(quantity, 0.5),
        method=as_method(method),
        loss_fn=loss_fn,
        ranking=Ranking() if ranking is None else ranking,
        seed=seed,
    ).ready()
    costs = CostModel(task.model, example_inputs, task.groups)
    today = costs.spent(quantity)
    limit = float(budget.value) if budget.share is None else budget.limit(today)  # it may be above today's cost
    _check_room(task, costs, limit, moved)
    if len(task.groups) == 1 and limit <= today:
        _log.warning("%r is the only group that may go: it gets back what it gives", task.groups[0].name)
    samples = sum(leading_size(inputs) for inputs, _ in task.batches)
    found = find_bottlenecks(
        model,
        example_inputs,
        batches,
        levels=(moved, (1 + moved) / 2),
        method=method,
        loss_fn=loss_fn,
        quantity=quantity,
        draws=max(1, min(DRAWS, samples)),
        ranking=ranking,
        seed=seed,
    )
    share = min(1.0, limit / today) * (1 - moved)
    smaller = prune(
        model,
        example_inputs,
        batches,
        budget=Budget.keeping(quantity, round(share, 9)),
        method=method,
        loss_fn=loss_fn,
        ranking=ranking,
        seed=seed,
    )
    multiple = task.ranking.round_to
    bound: dict[str, Any] = {quantity: int(limit)}
    if all(group.num_units - len(smaller.plan.removed[group.name]) < 2 for group in task.groups):
        raise BudgetError(
            f"`moved` must leave two units in one group at least, got {moved:g}, which leaves one in each. Pass "
            f"moved={moved / 2:g}."
        )
    wider = _widened(smaller.model, example_inputs, found, Budget(**bound), multiple, start=start, seed=seed)
    return Reallocation(
        model=wider.model,
        plan=Chain(steps=(smaller.plan, wider.plan)),
        bottlenecks=found,
        cost_before=costs.dense,
        cost_after=wider.cost_after,
    )


def _check_ranking(ranking: Ranking) -> None:
    """Raise where a ranking asks for what cannot be.

    Raises:
        ArgumentError: Units leave in steps, or as many in each layer, or are of kinds that cannot grow.
    """
    check_at_once(ranking)
    if ranking.uniform:
        raise ArgumentError(
            "`ranking.uniform` must be False where the narrowest layers alone grow, got True. Leave it out, or pass "
            "widths for all layers to hp.widen."
        )
    if fixed := [kind for kind in ranking.units or () if kind in FIXED]:
        raise ArgumentError(
            f"`ranking.units` must be kinds that can grow, got {', '.join(fixed)}. Leave out what cannot."
        )


def _check_room(task: Task, costs: CostModel, limit: float, moved: float) -> None:
    """Raise where the pruning cannot take the share that moves, or the groups cannot take the budget.

    Raises:
        BudgetError: More is left without all units that may go, or all groups at their largest cost less.
    """
    quantity = task.budget.quantity
    units = {group.name: group.num_units for group in task.groups}
    most = scaled(units, LARGEST_GROWTH, task.ranking.round_to)
    largest = round(costs.spent(quantity, {name: number - most[name] for name, number in units.items()}))
    if limit > largest:
        raise BudgetError(
            f"`budget` must be at most {quantity} = {largest:,}, what the model costs with {LARGEST_GROWTH:g} times "
            f"the units in every group, got {int(limit):,}. Pass budget=hp.Budget({quantity}={largest})."
        )
    today, least = costs.spent(quantity), least_left(costs, task.groups, task.budget, task.ranking)
    if (kept := min(today, limit) * (1 - moved)) >= least:
        return
    share, half = math.ceil(1000 * least / (1 - moved) / today) / 1000, math.floor(500 * (1 - least / today)) / 1000
    if share <= 1:
        remedy = f"Pass budget=hp.Budget({quantity}={share:g})"
    elif half >= LEAST_MOVED:
        remedy = f"Pass moved={half:g}" + (f", budget=hp.Budget({quantity}=1.0)" if limit < today else "")
    elif task.ranking.round_to > 1:
        remedy = f"Lower `ranking.round_to`, {task.ranking.round_to}"
    else:
        remedy = "Let hp.widen(model, example_inputs, widths) grow it, which prunes nothing"
    raise BudgetError(
        f"`budget` and `moved` must leave {quantity} = {round(least):,}, what the model has when every unit that may "
        f"go is gone, got {int(kept):,}: {1 - moved:g} of {int(min(today, limit)):,}. {remedy}."
    )


def _widened(
    model: nn.Module,
    example_inputs: Any,
    found: Bottlenecks,
    budget: Budget,
    multiple: int,
    **settings: Any,
) -> WidenResult:
    """Widen the narrow groups, by one factor for all of them, until the cost is at the budget.

    Raises:
        BudgetError: Not even one more unit fits.
        VerificationError: No group can grow.
    """
    groups = find_groups(model, example_inputs, compare=True)
    units = {group.name: group.num_units for group in groups}
    costs = CostModel(arrived(model), example_inputs, groups)
    first = len(found.narrow) or max(1, len(found) // 4)
    most = scaled({item.group: item.num_units for item in found}, LARGEST_GROWTH, multiple)

    def widened(names: Sequence[str]) -> WidenResult:
        order = {name: units[name] for name in names}
        widths = narrowest_within(costs, order, first, budget, multiple=multiple, most=most)
        if all(width == units[name] for name, width in widths.items()):
            more = "one more unit" if multiple == 1 else f"{multiple} more units, which `ranking.round_to` asks for,"
            raise BudgetError(
                f"`moved` must leave room for {more} in {', '.join(map(repr, names[:3]))}, and does not. "
                f"{'Raise it' if multiple == 1 else 'Lower `ranking.round_to`'}."
            )
        wider = widen(model, example_inputs, widths, **settings)
        if all(widths.get(name, 0) >= most[name] for name in names):
            _log.warning("all groups that can grow have %g times their width; more cannot be spent", LARGEST_GROWTH)
        return wider

    names = [item.group for item in found if item.group in units]
    try:
        return widened(names)
    except VerificationError:  # a group cannot grow, such as the channels of tied embeddings
        names = [name for name in names if grows(model, example_inputs, groups, name)]
        if not names:
            raise
        return widened(names)
