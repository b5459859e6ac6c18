from dataclasses import replace
from typing import Any

import pytest

import hessprune as hp
from hessprune.costs.budget import Budget, check_budget
from hessprune.costs.target import LatencyTarget
from hessprune.errors import ArgumentError, BudgetError


@pytest.mark.parametrize(
    ("budget", "limit", "share"),
    [
        (Budget(macs=0.5), 500, 0.5),
        (Budget(macs="50%"), 500, 0.5),
        (Budget(params=40), 40, None),
        (Budget(params="12.5%"), 125, 0.125),
        (Budget(units=1), 1000, 1.0),
        (Budget(units="100%"), 1000, 1.0),
        (Budget(latency_ms="50%"), 500, 0.5),
        (Budget(latency_ms=0.5), 0.5, None),
        (Budget(latency_ms=1), 1, None),
        (Budget(latency_ms=12.3), 12.3, None),
    ],
    ids=repr,
)
def test_a_share_or_an_absolute_number(budget: Budget, limit: float, share: float | None) -> None:
    assert budget.limit(1000) == limit
    assert budget.share == share
    assert budget.is_latency == (budget.quantity == "latency_ms")


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), True, [1]])
@pytest.mark.parametrize(
    ("quantity", "message"), [("macs", r"a kept share in \(0, 1\] or a count"), ("latency_ms", "milliseconds above 0")]
)
def test_impossible_numbers(quantity: str, message: str, value: Any) -> None:
    with pytest.raises(BudgetError, match=f"must be {message}"):
        Budget(**{quantity: value})


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"macs": "0.5"}, "got '0.5'. Write macs=0.5 or macs=\"50%\""),
        ({"params": "0.125"}, 'Write params=0.125 or params="12.5%"'),
        ({"macs": "5000"}, r"got '5000'. Write macs=5000\."),
        ({"latency_ms": "0.5"}, 'Write latency_ms=0.5 or latency_ms="50%"'),
        ({"macs": "half"}, "got 'half'. Write macs=\"50%\""),
        ({"macs": "0%"}, "share above 0"),
        ({"macs": "150%"}, 'up to "100%"'),
        ({"macs": "nan%"}, "got 'nan%'"),
        ({"macs": "%"}, "got '%'"),
    ],
)
def test_numbers_as_text_are_refused_with_the_number_to_write(arguments: dict[str, str], advice: str) -> None:
    with pytest.raises(BudgetError, match=advice):
        Budget(**arguments)


def test_between_a_share_and_a_count() -> None:
    with pytest.raises(BudgetError, match=r"above 1 must be a whole number, got 1\.5"):
        Budget(macs=1.5)


@pytest.mark.parametrize(("named", "got"), [({}, "none"), ({"macs": 0.5, "params": 0.5}, "macs and params")])
def test_exactly_one_quantity(named: dict[str, float], got: str) -> None:
    with pytest.raises(BudgetError, match=f"exactly one of macs, params, latency_ms, units, kv_cache, got {got}"):
        Budget(**named)


def test_an_absolute_bound_above_the_dense_model() -> None:
    with pytest.raises(BudgetError, match=r"must be below the dense model's 1,000. Write macs=0.5 to keep half"):
        Budget(macs=5000).limit(1000)
    with pytest.raises(BudgetError, match=r'must be below the dense model\'s 2.0. Write latency_ms="50%" to keep half'):
        Budget(latency_ms=5).limit(2.0)


def test_a_target_says_where_time_is_measured() -> None:
    target = LatencyTarget(batch_size=8)
    budget = Budget(latency_ms="50%", target=target)
    assert budget.target is target
    assert repr(budget) == "Budget(latency_ms='50%', target=LatencyTarget(…))"
    assert budget.without_target() == Budget(latency_ms="50%")
    assert Budget(macs=0.5).without_target() == Budget(macs=0.5)
    assert replace(Budget(latency_ms=2), target=target) == Budget(latency_ms=2, target=target)
    with pytest.raises(BudgetError, match="`target` must come with `latency_ms`, got it beside `macs`"):
        Budget(macs=0.5, target=target)
    with pytest.raises(BudgetError, match="`target` must be a LatencyTarget or a LatencyTable, got 'torch'"):
        Budget(latency_ms=2, target="torch")  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.123456789, 1e-9, 1 / 3])
def test_a_kept_share_of_any_quantity(share: float) -> None:
    for quantity in ("macs", "params", "units", "latency_ms"):
        budget = Budget.keeping(quantity, share)
        assert (budget.quantity, budget.share) == (quantity, share)


@pytest.mark.parametrize(
    ("budget", "advice"),
    [
        (0.5, r"got 0.5. Write budget=hp.Budget\(macs=0.5\)"),
        ("0.5", r"got '0.5'. Write budget=hp.Budget\(macs=0.5\)"),
        ("40%", r"got '40%'. Write budget=hp.Budget\(macs='40%'\)"),
        ({"params": 0.3}, r"got {'params': 0.3}. Write budget=hp.Budget\(params=0.3\)"),
        ({"parms": 0.3}, r"got {'parms': 0.3}. Write budget=hp.Budget\(macs=0.5\)"),
        (None, r"got None. Write budget=hp.Budget\(macs=0.5\)"),
    ],
)
def test_other_types_are_refused_with_the_call_to_write(budget: Any, advice: str) -> None:
    with pytest.raises(BudgetError, match=f"`budget` must be a Budget, {advice}"):
        check_budget(budget)


def test_what_is_named_as_a_microsecond_is_gone() -> None:
    with pytest.raises(TypeError, match="latency_us"):
        hp.Budget(latency_us=800)  # type: ignore[call-arg]


def test_a_budget_error_is_an_argument_error() -> None:
    assert issubclass(BudgetError, ArgumentError)
