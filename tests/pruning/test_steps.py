import pytest
import torch

import hessprune as hp
from hessprune.pruning.steps import plan_stepwise
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


@pytest.mark.parametrize("method", ["magnitude", "joint"])
def test_steps_meet_the_budget_and_the_floors(method: str) -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, BATCHES, method)
    ranking = hp.Ranking(min_kept_fraction=0.25)
    limits: list[hp.Budget] = []

    def remember(limit, plan, go_on):
        limits.append(limit)
        return go_on()

    options = {"example_inputs": X, "values": values, "ranking": ranking, "remember": remember}
    plan = plan_stepwise(model, groups, BATCHES, hp.Budget(macs=0.55), step=0.2, **options)
    assert limits == [hp.Budget(macs=0.8), hp.Budget(macs=0.6), hp.Budget(macs=0.55)]
    assert plan.cost_after.macs <= 0.55 * plan.cost_before.macs
    assert all(4 * len(plan.kept[group.name]) >= group.num_units for group in groups)
    assert plan.provenance["step"] == 0.2
    hp.apply_plan(model, plan)


def test_one_step_is_make_plan() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, BATCHES, "magnitude")
    options = {"example_inputs": X, "values": values}
    plan = plan_stepwise(model, groups, BATCHES, hp.Budget(macs=0.6), step=1.0, **options)
    direct = hp.make_plan(model, groups, values, hp.Budget(macs=0.6), example_inputs=X)
    assert plan.removed == direct.removed
    with pytest.raises(hp.ArgumentError, match="`step` must be"):
        plan_stepwise(model, groups, BATCHES, hp.Budget(macs=0.6), step=0.0, **options)
