import pytest
import torch

import hessprune as hp
from hessprune.foundation.batches import Rereadable
from hessprune.pruning.memory import NoMemory
from hessprune.pruning.prune import carry_out
from hessprune.pruning.task import Task
from hessprune.structure.remaining import remaining_groups
from tests.cases import AWKWARD, Residual, image, make

X = image(batch=20)
BATCHES = [(X, torch.arange(20) % 4)]


@pytest.mark.parametrize("case", AWKWARD, ids=lambda case: case.__name__)
def test_remaining_groups_prune_the_pruned_model(case: type[torch.nn.Module]) -> None:
    """Removing in two goes, with closed-up groups, is removing at once."""
    model, x = make(case), image()
    groups = hp.find_groups(model, x)
    generator = torch.Generator().manual_seed(0)
    saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
    plan = hp.make_plan(model, groups, saliency, hp.Budget(params=0.8), example_inputs=x)
    once = hp.apply_plan(model, plan)
    left = remaining_groups(groups, plan.removed)
    kept = {group.name: saliency[group.name][list(plan.kept[group.name])] for group in groups}
    second = hp.make_plan(once, left, kept, hp.Budget(params=0.9), example_inputs=x)
    twice = hp.apply_plan(once, second)
    assert second.num_removed > 0
    assert hp.cost(twice, x) == second.cost_after


class Plans(NoMemory):
    """Remembers the budgets of the steps."""

    def __init__(self) -> None:
        self.budgets: list[dict] = []

    def plan(self, settings, make):
        self.budgets.append(settings["budget"])
        return make()


def task(model: torch.nn.Module, method: hp.Method, budget: hp.Budget, ranking: hp.Ranking, plans: Plans) -> Task:
    return Task(
        model=model,
        example_inputs=X,
        batches=Rereadable(BATCHES),
        budget=budget,
        method=method,
        ranking=ranking,
        groups=hp.find_groups(model, X),
        memory=plans,
    )


@pytest.mark.parametrize("method", [hp.Magnitude(), hp.Joint(), hp.Joint(refit=False)], ids=str)
def test_steps_meet_the_budget_and_the_floors(method: hp.Method) -> None:
    model, plans = make(Residual), Plans()
    groups = hp.find_groups(model, X)
    ranking = hp.Ranking(min_kept_fraction=0.25, step=0.2)
    result = carry_out(task(model, method, hp.Budget(macs=0.55), ranking, plans))
    plan = result.plan
    assert plans.budgets == [{"macs": 0.8}, {"macs": 0.6}, {"macs": 0.55}]
    assert plan.cost_after.macs <= 0.55 * plan.cost_before.macs
    assert all(4 * len(plan.kept[group.name]) >= group.num_units for group in groups)
    assert plan.provenance["ranking"]["step"] == 0.2
    hp.apply_plan(model, plan)


def test_one_step_is_make_plan() -> None:
    model, budget, plans = make(Residual), hp.Budget(macs=0.6), Plans()
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, BATCHES, "magnitude")
    result = carry_out(task(model, hp.Magnitude(), budget, hp.Ranking(), plans))
    assert result.plan.removed == hp.make_plan(model, groups, values, budget, example_inputs=X).removed
    assert plans.budgets == [{"macs": 0.6}]
    with pytest.raises(hp.errors.ArgumentError, match="`step` must be"):
        hp.Ranking(step=0.0)
