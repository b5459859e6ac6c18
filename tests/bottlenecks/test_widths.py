"""Groups that grow by one factor spend a budget and no more."""

import torch
from torch import nn

import hessprune as hp
from hessprune.bottlenecks.widths import narrowest_within, scaled, widths_within

X = torch.zeros(1, 4)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def params_of(widths: dict[str, int]) -> int:
    return hp.cost(hp.widen(net(), X, widths).model, X).params


def test_the_predicted_cost_is_the_cost_and_the_next_step_does_not_fit():
    for limit in (150, 200, 333):
        widths = widths_within(net(), X, ["0", "2"], hp.Budget(params=limit))
        assert params_of(widths) <= limit
        more = {name: width + 1 for name, width in widths.items()}
        assert params_of(more) > limit


def test_uniform_widening_is_by_one_factor():
    widths = widths_within(net(), X, ["0", "2"], hp.Budget(params=400))
    assert abs(widths["0"] / 6 - widths["2"] / 10) < 0.15


def test_the_factor_has_a_limit_and_then_the_next_group_joins():
    budget = hp.Budget(params=10_000)
    assert widths_within(net(), X, ["0"], budget, largest=4) == {"0": 24}
    assert narrowest_within(net(), X, ["0", "2"], 1, budget, largest=4) == {"0": 24, "2": 40}
    assert set(narrowest_within(net(), X, ["2", "0"], 1, hp.Budget(params=200), largest=4)) == {"2"}


def test_the_next_group_joins_where_multiples_leave_the_first_below_its_cap():
    found = narrowest_within(net(), X, ["2", "0"], 1, hp.Budget(params=100_000), multiple=16, largest=4)
    assert found == {"2": 32, "0": 32}


def test_multiples_and_no_fewer_units_than_before():
    assert scaled({"a": 6, "b": 10}, 1.5, 8) == {"a": 8, "b": 16}
    assert scaled({"a": 6}, 1.0, 8) == {"a": 8}
    assert scaled({"a": 11}, 1.0, 8) == {"a": 11}
