"""Which units a budget removes, as a function of saliencies alone: for asking again and again while they settle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.model import CostModel
from hessprune.planning.ranking import Ranking, not_ignored, select
from hessprune.planning.steps import select_in_steps
from hessprune.structure.groups import Group, check_per_unit


def removal_for(
    model: nn.Module,
    groups: Sequence[Group],
    budget: Budget,
    *,
    example_inputs: Any,
    ranking: Ranking | None = None,
    latency: LatencyTable | None = None,
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return the function from saliencies to the units that `make_plan` would remove.

    Costs are counted once, so that a call takes milliseconds: a stochastic estimate can draw until this decision has
    settled, `hp.TraceOptions(until=hp.Until(removed=hp.removal_for(…)))`.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        budget: What may be left.
        example_inputs: The inputs for which MACs are counted; shapes only.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.
        latency: For a budget of time, what predicts it.

    Returns:
        A function of `{group name: (U,)}` that returns one boolean tensor `(U,)` by group: True for what goes.

    Example:
        >>> import hessprune as hp
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x = torch.zeros(1, 2)
        >>> removed = removal_for(net, hp.find_groups(net, x), hp.Budget(macs=0.5), example_inputs=x)
        >>> removed({"0": torch.tensor([3.0, 1.0, 2.0, 4.0])})
        {'0': tensor([False,  True,  True, False])}
    """
    ranking = ranking or Ranking()
    free = not_ignored(groups, ranking.ignored_layers)
    costs = CostModel(model, example_inputs, groups, latency=latency)

    def removed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        choose = select_in_steps if budget.is_latency else select
        chosen = choose(free, check_per_unit(values, groups, "values"), costs, budget=budget, ranking=ranking)
        return {group.name: _mask(group, chosen.get(group.name, ())) for group in groups}

    return removed


def _mask(group: Group, units: Sequence[int]) -> Tensor:
    return torch.zeros(group.num_units, dtype=torch.bool).index_fill(0, torch.tensor(units, dtype=torch.int64), True)
