"""Budgets that no weights could meet are refused by structure alone, in the words of planning."""

import pytest

import hessprune as hp
from hessprune.errors import ArgumentError, BudgetError
from hessprune.planning.reachable import check_reachable
from tests.provoking import GROUPS, NET, X, plan


@pytest.mark.parametrize("ranking", [hp.Ranking(), hp.Ranking(round_to=4), hp.Ranking(min_kept_fraction=0.5)])
@pytest.mark.parametrize("budget", [hp.Budget(macs=0.01), hp.Budget(params=0.05)])
def test_the_message_is_that_of_planning(budget: hp.Budget, ranking: hp.Ranking) -> None:
    with pytest.raises(BudgetError) as planned:
        plan(budget, ranking=ranking)
    with pytest.raises(BudgetError) as checked:
        check_reachable(NET, GROUPS, budget, ranking, X[:1])
    assert str(checked.value) == str(planned.value)


@pytest.mark.parametrize("budget", [hp.Budget(macs=0.5), hp.Budget(units=0.3), hp.Budget(latency_ms="50%")])
def test_other_budgets_pass(budget: hp.Budget) -> None:
    check_reachable(NET, GROUPS, budget, hp.Ranking(ignore=("a",)), X[:1])


def test_floors_of_unknown_groups_are_refused() -> None:
    with pytest.raises(ArgumentError, match="`min_kept_units` must name groups"):
        check_reachable(NET, GROUPS, hp.Budget(macs=0.5), hp.Ranking(min_kept_units=(("b", 2),)), X[:1])
