"""Groups that grow by one factor spend a budget and no more."""

import torch
from torch import nn

import hessprune as hp
from hessprune.bottlenecks.widths import narrowest_within, scaled, widths_within
from hessprune.costs.model import CostModel

X = torch.zeros(1, 4)
UNITS = {"0": 6, "2": 10}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def costs() -> CostModel:
    return CostModel(net(), X, hp.find_groups(net(), X))


def params_of(widths: dict[str, int]) -> int:
    return hp.cost(hp.widen(net(), X, widths).model, X).params


def test_the_predicted_cost_is_the_cost_and_the_next_step_does_not_fit():
    for limit in (150, 200, 333):
        widths = widths_within(costs(), UNITS, hp.Budget(params=limit))
        assert params_of(widths) <= limit
        more = {name: width + 1 for name, width in widths.items()}
        assert params_of(more) > limit


def test_groups_that_would_grow_together_grow_one_by_one_where_both_do_not_fit():
    twins = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    twins.append(nn.Linear(8, 3))
    units = {"0": 8, "2": 8, "4": 8}
    costs = CostModel(twins, X, hp.find_groups(twins, X))
    for limit in range(220, 420, 7):
        widths = widths_within(costs, units, hp.Budget(params=limit))
        left = {name: hp.widen(twins, X, widths | {name: width + 1}).model for name, width in widths.items()}
        assert max(widths.values()) - min(widths.values()) <= 1
        assert any(hp.cost(model, X).params > limit for model in left.values())
        smallest = min(widths, key=lambda name: (widths[name], -units[name]))
        if len(set(widths.values())) > 1:
            assert hp.cost(left[smallest], X).params > limit


def test_no_group_grows_where_the_next_multiple_does_not_fit():
    assert widths_within(costs(), UNITS, hp.Budget(params=150), multiple=8) == UNITS


def test_uniform_widening_is_by_one_factor():
    widths = widths_within(costs(), UNITS, hp.Budget(params=400))
    assert abs(widths["0"] / 6 - widths["2"] / 10) < 0.15


def test_the_factor_has_a_limit_and_then_the_next_group_joins():
    budget = hp.Budget(params=10_000)
    assert widths_within(costs(), {"0": 6}, budget, most={"0": 24}) == {"0": 24}
    assert narrowest_within(costs(), UNITS, 1, budget) == {"0": 24, "2": 40}
    assert set(narrowest_within(costs(), {"2": 10, "0": 6}, 1, hp.Budget(params=200))) == {"2"}


def test_the_next_group_joins_where_multiples_leave_the_first_below_its_cap():
    found = narrowest_within(costs(), {"2": 10, "0": 6}, 1, hp.Budget(params=100_000), multiple=16)
    assert found == {"2": 32, "0": 32}


def test_a_group_at_its_limit_stays_there_while_the_others_grow():
    most, budget = {"0": 9, "2": 40}, hp.Budget(params=400)
    widths = widths_within(costs(), UNITS, budget, most=most)
    assert widths["0"] == 9
    assert 10 < widths["2"] < 40
    assert params_of(widths) <= 400 < params_of({"0": 9, "2": widths["2"] + 1})
    assert narrowest_within(costs(), UNITS, 1, hp.Budget(params=10_000), most=most) == most


def test_more_groups_to_begin_with_than_there_are_is_all_of_them():
    assert narrowest_within(costs(), {"2": 10}, 3, hp.Budget(params=150)).keys() == {"2"}


def test_multiples_and_no_fewer_units_than_before():
    assert scaled({"a": 6, "b": 10}, 1.5, 8) == {"a": 8, "b": 16}
    assert scaled({"a": 6}, 1.0, 8) == {"a": 8}
    assert scaled({"a": 11}, 1.0, 8) == {"a": 11}
