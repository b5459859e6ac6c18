"""One global ranking: the least saliency per cost saved goes first, until the budget is met."""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor, nn

from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import unit_step
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError
from hessprune.foundation.checks import check_range, nearest
from hessprune.foundation.formatting import shown
from hessprune.foundation.options import check_flag
from hessprune.structure.groups import Group, Groups, Ignored, Kind
from hessprune.structure.kinds import check_kinds, only
from hessprune.structure.queries import check_mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Settings between saliencies and a plan.

    Args:
        per_cost: Divide each saliency by the cost that its unit saves, in the budgeted quantity: an early channel may
            cost many times a late one. None follows the habit of the method.
        min_kept_fraction: Every group keeps at least this share of its units (and always one).
        round_to: Layers keep a multiple of this many channels, which suits the kernels of most hardware.
        ignore: Layers whose units stay: name patterns; for `prune` also modules and types of modules.
        units: Kinds of units that may go, of `"heads"`, `"neurons"`, `"channels"`, `"embedding"`, `"qk"` and `"v"`;
            None for all that zeros in weights can mask; see `find_groups`.
        min_kept_units: Floors of single groups, `(name, units)`, in place of the fraction.
        step: Share of the budgeted quantity to remove before saliencies are measured anew; 1 decides at once.
        gqa: For `prune`, what leaves attention whose queries share keys and values; see `find_groups`.
        uniform: Layers that are alike keep the same number of units, so that a configuration of transformers can say
            it, and `save_pretrained` writes a folder that transformers reads. Interactions do not count then.

    Raises:
        ArgumentError: A value is out of range or of another type.

    Example:
        >>> import hessprune as hp
        >>> hp.Ranking(round_to=8, ignore=("layer1.*",)).round_to
        8
    """

    per_cost: bool | None = None
    min_kept_fraction: float = 0.1
    round_to: int = 1
    ignore: tuple[Any, ...] = ()
    units: tuple[Kind, ...] | None = None
    min_kept_units: tuple[tuple[str, int], ...] = ()
    step: float = 1.0
    gqa: str = "kv-group"
    uniform: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; modules of `ignore` by their kind."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"ignore": [_named(entry) for entry in self.ignore]}

    def __post_init__(self) -> None:
        check_range("min_kept_fraction", self.min_kept_fraction, low=0, high=1)
        check_range("round_to", self.round_to, low=1, integer=True)
        check_range("step", self.step, low=1e-3, high=1)
        check_mode(self.gqa)
        check_flag("uniform", self.uniform)
        if self.per_cost not in (None, True, False):
            raise ArgumentError(f"`per_cost` must be True, False or None, got {shown(self.per_cost)}.")
        if not _is_sequence(self.ignore) or not all(map(_is_ignorable, self.ignore)):
            raise ArgumentError(
                f"`ignore` must be a tuple of name patterns, modules or types of modules, got {shown(self.ignore)}. "
                'Write ignore=("layer1.*",).'
            )
        check_kinds(self.units)
        if not _is_sequence(self.min_kept_units) or not all(map(_is_floor, self.min_kept_units)):
            raise ArgumentError(
                "`min_kept_units` must be pairs of a group's name and its number of units, got "
                f'{self.min_kept_units!r}. Write min_kept_units=(("layer1.0.conv1", 8),).'
            )


def check_ranking(ranking: Any, groups: Sequence[Group]) -> Ranking:
    """Return the ranking, the defaults for None, after a look at its type and its names.

    Raises:
        ArgumentError: It is no `Ranking`, or one of its floors is of a group that does not exist.
    """
    if ranking is None:
        return Ranking()
    if not isinstance(ranking, Ranking):
        raise ArgumentError(f"`ranking` must be a Ranking, got {shown(ranking)}. Write ranking=hp.Ranking(round_to=8).")
    names = [group.name for group in groups]
    for name, _ in ranking.min_kept_units:
        if name not in names:
            raise ArgumentError(f"`min_kept_units` must name groups, got {shown(name)}.{nearest(name, names)}")
    return ranking


def select(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, *, budget: Budget, ranking: Ranking
) -> dict[str, tuple[int, ...]]:
    """Return the units to remove from each group: the shortest prefix of the global ranking that meets the budget.

    Ties are broken by group and unit, so the result is deterministic. Takes O(U log U) and log₂ U calls of `costs`.

    Raises:
        BudgetError: Removing all that may go is not enough; the message says what is reachable.
    """
    order, leaving = orders(groups, saliency), rounding(costs, budget, ranking)
    candidates = candidate_groups(groups, saliency, costs, budget, ranking)

    def removed(length: int) -> dict[str, int]:
        counts = np.bincount(candidates[:length], minlength=len(groups)).tolist()
        return {group.name: leaving(group, count) for group, count in zip(groups, counts, strict=True)}

    length = shortest_prefix(
        len(candidates), lambda size: costs.spent(budget.quantity, removed(size)), costs, budget=budget, ranking=ranking
    )
    return {name: tuple(sorted(order[name][:count].tolist())) for name, count in removed(length).items()}


def shortest_prefix(
    most: int, spent: Callable[[int], float], costs: CostModel, *, budget: Budget, ranking: Ranking
) -> int:
    """Return the length of the shortest prefix of a ranking that meets the budget, by bisection.

    Args:
        most: Length of the whole ranking.
        spent: The cost that is left after the first units of the ranking are gone.
        costs: Exact costs.
        budget: The bound.
        ranking: For the message.

    Raises:
        BudgetError: The whole ranking is not enough.
    """
    limit = budget.limit(dense := costs.spent(budget.quantity))
    if (least := spent(most)) > limit:
        raise BudgetError(out_of_reach(budget, least, dense, ranking))
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if spent(middle) <= limit else (middle + 1, high)
    return low


def orders(groups: Sequence[Group], saliency: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return the units of each group, the least salient first."""
    return {group.name: np.argsort(saliency[group.name].numpy(), kind="stable") for group in groups}


def candidate_groups(
    groups: Sequence[Group], saliency: Mapping[str, Tensor], costs: CostModel, budget: Budget, ranking: Ranking
) -> np.ndarray:
    """Return the global ranking as group numbers: one entry for each unit that may go, in the order of elimination."""
    saved = costs.saved_next(budget.quantity) if ranking.per_cost is not False else {}
    scores, owners = [], []
    for number, group in enumerate(groups):
        values = np.sort(saliency[group.name].numpy())[: removable(group, ranking)]
        scores.append(values / max(saved.get(group.name, 1.0), 1e-12))
        owners.append(np.full(len(values), number))
    return np.concatenate(owners)[np.argsort(np.concatenate(scores), kind="stable")]


def free_groups(groups: Sequence[Group], ranking: Ranking) -> list[Group]:
    """Return the groups of the kinds in `units` that match no pattern of `ignore`.

    Raises:
        ArgumentError: A pattern matches no group, together they match all, or no group is of these kinds.
    """
    patterns = ranking.ignore
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ArgumentError(
                f"`ignore` must hold name patterns here, got {shown(pattern)}. Pass modules to hp.prune or "
                "hp.find_groups."
            )
        if not any(fnmatch.fnmatchcase(group.name, pattern) for group in groups):
            raise ArgumentError(f"`ignore` must match group names, got {shown(pattern)}. See `find_groups`.")
    names = [str(pattern) for pattern in patterns]
    free = [group for group in groups if not any(fnmatch.fnmatchcase(group.name, name) for name in names)]
    if not free:
        raise ArgumentError(
            f"`ignore` must leave a group to prune, got {shown(tuple(patterns))}, which match all. Drop one."
        )
    return [*only(Groups(free), ranking.units)]


def counting(groups: Sequence[Group], costs: CostModel, budget: Budget) -> list[Group]:
    """Return the groups of which the budgeted quantity depends; of a cache, those with keys and values.

    Raises:
        BudgetError: There are none.
    """
    if budget.quantity != "kv_cache":
        return [*groups]
    saved = costs.saved_next(budget.quantity)
    found = [group for group in groups if saved[group.name] > 0]
    if not found and costs.dense.kv_cache and any(g.kind == "heads" and g.num_units > 1 for g in groups):
        raise BudgetError(
            f"`{budget!r}` must find heads of keys and values that may leave, got groups of queries alone. Write "
            'gqa="kv-group" where layers have several such heads, or Budget(macs=0.5).'
        )
    if not found:
        raise BudgetError(
            f"`{budget!r}` must bound the cache of a decoder with removable heads, got a model without. "
            "Write Budget(macs=0.5)."
        )
    return found


def removable(group: Group, ranking: Ranking) -> int:
    """Return how many units of a group may go at most."""
    floor = math.ceil(ranking.min_kept_fraction * group.num_units - 1e-9)
    floor = max(1, dict(ranking.min_kept_units).get(group.name, floor))
    return max(group.num_units - floor, 0)


def rounding(costs: CostModel, budget: Budget, ranking: Ranking) -> Callable[[Group, int], int]:
    """Return a function of a group and a number of ranked units: the number that goes, after rounding.

    The kept channels come in multiples of `round_to`. For a budget of time, groups stop only at widths that measure as
    faster.
    """
    return lambda group, num_ranked: costs.num_leaving(
        budget.quantity, group.name, num_ranked, unit_step(group, ranking.round_to)
    )


WHOLE = 0.5
"""Share of a model that makes one ask why so little may leave."""


def out_of_reach(budget: Budget, reachable: float, dense: float, ranking: Ranking) -> str:
    """Return the message about a budget out of reach, with the least budget that can be met."""
    least = Budget.keeping(budget.quantity, math.ceil(1000 * reachable / dense) / 1000)
    bound = f'"{least.value}"' if isinstance(least.value, str) else f"{least.value:g}"
    mostly_whole = reachable > WHOLE * dense and not budget.is_latency
    why = "; hp.find_groups(model, example_inputs, compare=True).frozen says what stays and why" if mostly_whole else ""
    time = "; narrower layers do not measure as faster" if budget.is_latency else ""
    return (
        f"`{budget.without_target()}` must be reachable, but removing every unit that may go leaves "
        f"{budget.quantity} = {round(reachable, 3):,}, {reachable / dense:.3f} of the dense model "
        f"(min_kept_fraction={ranking.min_kept_fraction:g}, round_to={ranking.round_to}{time}). "
        f"Ask for at least {budget.quantity}={bound}{why}."
    )


def _named(entry: Ignored) -> str:
    kind = entry if isinstance(entry, type) else type(entry)
    return entry if isinstance(entry, str) else f"{kind.__module__}.{kind.__qualname__}"


def _is_ignorable(entry: Any) -> bool:
    return isinstance(entry, str | nn.Module) or (isinstance(entry, type) and issubclass(entry, nn.Module))


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_floor(pair: Any) -> bool:
    if not _is_sequence(pair) or len(pair) != 2:
        return False
    name, units = pair
    return isinstance(name, str) and isinstance(units, int) and not isinstance(units, bool) and units >= 0


def check_at_once(ranking: Ranking) -> None:
    """Raise where a plan is made at once and the ranking asks for several steps.

    Raises:
        ArgumentError: It does.
    """
    if ranking.step < 1:
        raise ArgumentError(
            f"`ranking.step` must be 1 for a plan that is made at once, got {ranking.step:g}: hp.prune measures in "
            "between. Leave `step` out, or call hp.prune."
        )
