"""Widths that fit a budget: some groups of a model grow, all by one factor."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.structure.find import find_groups

LARGEST = 64.0
LARGEST_GROWTH = 4.0
"""Factor by which a narrow group grows at most before the next one grows, too."""
STEPS = 12


def widths_within(
    model: nn.Module,
    example_inputs: Any,
    names: Sequence[str],
    budget: Budget,
    *,
    multiple: int = 1,
    largest: float = LARGEST,
) -> dict[str, int]:
    """Return the widths of groups, grown by the largest factor whose cost fits the budget.

    Args:
        model: To be widened.
        example_inputs: One batch as the model takes it.
        names: Groups of the model that grow.
        budget: An absolute number of `macs` or `params`.
        multiple: Widths that grow become multiples of it.
        largest: Factor that is not exceeded, however much would fit.

    Returns:
        Units by name; those of today where not even one more fits.

    Example:
        >>> import torch, hessprune as hp
        >>> from hessprune.bottlenecks.widths import widths_within
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> widths_within(net, torch.zeros(1, 4), ["0"], hp.Budget(params=116))
        {'0': 16}
    """
    groups = find_groups(model, example_inputs)
    units = {group.name: group.num_units for group in groups}
    costs, limit = CostModel(model, example_inputs, groups), float(budget.value)

    def at(factor: float) -> dict[str, int]:
        return scaled({name: units[name] for name in names}, factor, multiple)

    def fits(widths: Mapping[str, int]) -> bool:  # a unit that comes is one that leaves, with the other sign
        return costs.spent(budget.quantity, {name: units[name] - width for name, width in widths.items()}) <= limit

    low, high = 1.0, min(2.0, largest)
    while fits(at(high)) and high < largest:
        low, high = high, min(2 * high, largest)
    if fits(at(high)):
        return at(high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    return at(low)


def scaled(units: Mapping[str, int], factor: float, multiple: int = 1) -> dict[str, int]:
    """Return numbers of units times a factor, as multiples of a number and never fewer than before."""
    wanted = {name: round(number * factor / multiple) * multiple for name, number in units.items()}
    return {name: max(units[name], width) for name, width in wanted.items()}


def narrowest_within(
    model: nn.Module,
    example_inputs: Any,
    order: Sequence[str],
    first: int,
    budget: Budget,
    *,
    multiple: int = 1,
    largest: float = LARGEST_GROWTH,
) -> dict[str, int]:
    """Return the widths of the first groups of an order; of so many more that the budget is spent.

    Args:
        model: To be widened.
        example_inputs: One batch as the model takes it.
        order: Names of groups, the narrowest first.
        first: Groups to begin with.
        budget: An absolute number of `macs` or `params`.
        multiple: Widths that grow become multiples of it.
        largest: Factor by which a group grows at most; where all have it, the next group joins.
    """
    units = {group.name: group.num_units for group in find_groups(model, example_inputs)}
    names: Collection[str] = [name for name in order if name in units]
    widths: dict[str, int] = {}
    for number in range(max(1, first), len(names) + 1):
        grown = list(names)[:number]
        widths = widths_within(model, example_inputs, grown, budget, multiple=multiple, largest=largest)
        if widths != scaled({name: units[name] for name in grown}, largest, multiple):
            break
    return widths
