"""Widths that fit a budget: some groups of a model grow, all by one factor."""

from collections.abc import Mapping

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel

LARGEST = 64.0
LARGEST_GROWTH = 4.0
"""Factor by which a narrow group grows at most; where all of them have it, the next one grows, too."""
STEPS = 12


def widths_within(
    costs: CostModel,
    units: Mapping[str, int],
    budget: Budget,
    *,
    multiple: int = 1,
    most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the widths of groups, grown by the largest factor whose cost fits the budget.

    The next larger factor adds units to several groups at once. Those of them that still fit come one by one, in the
    order of the groups.

    Args:
        costs: Of the model to be widened.
        units: Of the groups that grow, by name.
        budget: An absolute number of `macs` or `params`.
        multiple: Widths that grow become multiples of it.
        most: Units that a group has at most, however much would fit; 64 times those of today by default.

    Returns:
        Units by name; those of today where not even one more fits.

    Example:
        >>> import torch, hessprune as hp
        >>> from hessprune.bottlenecks.widths import widths_within
        >>> from hessprune.costs.model import CostModel
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> costs = CostModel(net, torch.zeros(1, 4), hp.find_groups(net, torch.zeros(1, 4)))
        >>> widths_within(costs, {"0": 8}, hp.Budget(params=116))
        {'0': 16}
    """
    limit = float(budget.value)
    largest = LARGEST if most is None else max(most[name] / number for name, number in units.items())

    def at(factor: float) -> dict[str, int]:
        widths = scaled(units, factor, multiple)
        return (
            widths
            if most is None
            else {name: min(width, max(most[name], units[name])) for name, width in widths.items()}
        )

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
    widths = at(low) if fits(at(low)) else dict(units)
    for name, width in at(high).items():
        if fits(widths | {name: width}):
            widths[name] = width
    return widths


def scaled(units: Mapping[str, int], factor: float, multiple: int = 1) -> dict[str, int]:
    """Return numbers of units times a factor, as multiples of a number and never fewer than before."""
    wanted = {name: round(number * factor / multiple) * multiple for name, number in units.items()}
    return {name: max(units[name], width) for name, width in wanted.items()}


def narrowest_within(
    costs: CostModel,
    units: Mapping[str, int],
    first: int,
    budget: Budget,
    *,
    multiple: int = 1,
    most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return the widths of the first groups of an order; of so many more that the budget is spent.

    Args:
        costs: Of the model to be widened.
        units: Of the groups that may grow, by name, the narrowest first.
        first: Groups to begin with.
        budget: An absolute number of `macs` or `params`.
        multiple: Widths that grow become multiples of it.
        most: Units that a group has at most, four times those of today by default; where all have them, the next group
            joins.
    """
    most = scaled(units, LARGEST_GROWTH, multiple) if most is None else most
    widths: dict[str, int] = {}
    for number in range(max(1, min(first, len(units))), len(units) + 1):
        grown = dict([*units.items()][:number])
        widths = widths_within(costs, grown, budget, multiple=multiple, most=most)
        has_grown = any(width > units[name] for name, width in widths.items())
        if has_grown and any(width < most[name] for name, width in widths.items()):
            break  # else nothing more of them fits, and the next group may be cheaper
    return widths
