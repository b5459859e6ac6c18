"""The removal for a budget as a function of saliencies alone, for repeated use while they settle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.costs.budget import Budget, check_budget, latency_table_of
from hessprune.costs.model import CostModel
from hessprune.planning.ranking import Ranking, check_ranking, counting, free_groups, select
from hessprune.planning.steps import select_in_steps
from hessprune.planning.uniform import select_uniformly
from hessprune.structure.belonging import check_groups
from hessprune.structure.groups import Group, check_per_unit


def removal_for(
    model: nn.Module,
    groups: Sequence[Group],
    budget: Budget,
    *,
    example_inputs: Any,
    ranking: Ranking | None = None,
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return the function from saliencies to the units that `make_plan` would remove.

    Costs are counted once, so a call takes milliseconds. A stochastic estimate can draw until this decision has
    settled: `hp.HAP(estimator="rademacher", until=hp.Until(removed=hp.removal_for(…)))`.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        budget: The bound; with `latency_ms`, its `target` must be a latency table.
        example_inputs: The inputs for which MACs are counted; shapes only.
        ranking: Floors, rounding, and whether saliency is taken per cost saved.

    Returns:
        A function of `{group name: (U,)}` that returns one boolean tensor `(U,)` by group: True for the units that go.

    Raises:
        BudgetError: `budget` is no `Budget`, or bounds time without a table.
        ArgumentError: Groups are those of another model, or `ranking` names unknown ones.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.zeros(1, 2)
        >>> removed = hp.removal_for(net, hp.find_groups(net, x), hp.Budget(macs=0.5), example_inputs=x)
        >>> removed({"0": torch.tensor([3.0, 1.0, 2.0, 4.0])})
        {'0': tensor([False,  True,  True, False])}
    """
    check_budget(budget)
    groups = check_groups(model, groups)
    checked = check_ranking(ranking, groups)
    costs = CostModel(model, example_inputs, groups, latency=latency_table_of(budget))
    free = counting(free_groups(groups, checked), costs, budget)

    def removed(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        choose = select_uniformly if checked.uniform else select_in_steps if budget.is_latency else select
        chosen = choose(free, check_per_unit(values, groups, "values"), costs, budget=budget, ranking=checked)
        return {group.name: _mask(group, chosen.get(group.name, ())) for group in groups}

    return removed


def _mask(group: Group, units: Sequence[int]) -> Tensor:
    index = torch.tensor(units, dtype=torch.int64, device="cpu")
    return torch.zeros(group.num_units, dtype=torch.bool, device="cpu").index_fill(0, index, True)
