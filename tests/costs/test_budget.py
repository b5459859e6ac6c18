import pytest

from hessprune.costs.budget import Budget
from hessprune.errors import BudgetError


@pytest.mark.parametrize(
    ("budget", "limit"), [(Budget(macs=0.5), 500), (Budget(params=40), 40), (Budget(units=1), 1000)]
)
def test_fraction_or_absolute(budget: Budget, limit: float) -> None:
    assert budget.limit(1000) == limit


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), "half", True])
def test_impossible_numbers(value: float) -> None:
    with pytest.raises(BudgetError, match=r"kept fraction in \(0, 1\] or an absolute number"):
        Budget(macs=value)


def test_between_a_fraction_and_a_count() -> None:
    with pytest.raises(BudgetError, match=r"above 1 must be a whole number, got 1\.5"):
        Budget(macs=1.5)


@pytest.mark.parametrize(("given", "found"), [({}, "none"), ({"macs": 0.5, "params": 0.5}, "macs and params")])
def test_exactly_one_quantity(given: dict[str, float], found: str) -> None:
    with pytest.raises(BudgetError, match=f"exactly one of macs, params, latency_ms, latency_us, units, got {found}"):
        Budget(**given)


def test_an_absolute_bound_above_the_dense_model() -> None:
    with pytest.raises(BudgetError, match="must be below the dense model's 1,000"):
        Budget(macs=5000).limit(1000)
