"""Stages are kept by content: shared where nothing changed, never where something did."""

import copy
from dataclasses import replace
from itertools import combinations

import pytest
import torch

import hessprune as hp
from hessprune.lab import pruned as module
from hessprune.lab.context import Model, open_run
from hessprune.lab.memory import StageMemory
from hessprune.lab.pruned import task_of
from hessprune.lab.recipe import parse_recipe
from hessprune.pruning.prune import carry_out, score
from hessprune.structure.find import find_groups

RECIPE = {
    "threads": 1,
    "data": {"calibration_size": 16},
    "model": {"pretrain": {"epochs": 0}},
    "prune": {"budget": {"macs": 0.5}, "method": "magnitude"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return open_run(parse_recipe(RECIPE), out, out)


@pytest.fixture(scope="module")
def dense(run):
    stage = run.store.run("1-dense", lambda folder: None)
    return Model(model=run.fresh_model(), stage=stage)


@pytest.fixture(scope="module")
def groups(run, dense):
    return find_groups(dense.model, run.example)


def with_prune(run, **changes):
    return replace(run, settings=replace(run.settings, prune=replace(run.settings.prune, **changes)))


def scored(run, dense, groups, method):
    """Return the stage that keeps the saliencies."""
    memory = StageMemory(run, dense, groups, method)
    task = task_of(run, dense, groups, method, run.settings.prune.budget, memory)
    memory.saliency(task.scoring_settings(), lambda: score(task, dense.model, groups))
    return memory.stages["2-saliency"]


def test_another_budget_costs_nothing(run, dense, groups):
    first = scored(run, dense, groups, "magnitude")
    again = scored(with_prune(run, compensate=False), dense, groups, "magnitude")
    assert (first.folder, again.reused) == (again.folder, True)


def test_other_weights_data_options_groups_or_method_are_measured_anew(run, dense, groups):
    scored(run, dense, groups, "hap")
    other = copy.deepcopy(dense.model)
    with torch.no_grad():
        other.conv1.weight.mul_(2)
    changed = [
        (run, replace(dense, model=other), groups, "hap"),
        (replace(run, data=run.data.with_calibration(5)), dense, groups, "hap"),
        (replace(run, data=run.data.with_normalisation((0.0,), (1.0,))), dense, groups, "hap"),
        (replace(run, settings=replace(run.settings, seed=3)), dense, groups, "hap"),
        (run, dense, groups, "hap(estimator=rademacher)"),
        (run, dense, groups, "hap(estimator=rademacher,num_probes=3)"),
        (run, dense, groups[1:], "hap"),
        (run, dense, groups, "random"),
    ]
    stages = [scored(*arguments) for arguments in changed]
    assert not any(stage.reused for stage in stages)
    assert len({stage.folder for stage in stages}) == len(changed)
    assert scored(run, dense, groups, "hap").reused


def test_a_remembered_pruning_is_read_back_whole(run, dense, groups, monkeypatch):
    def outcome():
        memory = StageMemory(run, dense, groups, "magnitude")
        return carry_out(task_of(run, dense, groups, "magnitude", run.settings.prune.budget, memory))

    first = outcome()
    monkeypatch.setattr("hessprune.pruning.prune.saliency", None)
    monkeypatch.setattr("hessprune.pruning.recovery.apply_plan", None)
    again = outcome()
    assert again.plan == first.plan
    state = first.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
    assert module.prune_by(run, dense, groups, "magnitude").plan == first.plan


def test_targets_of_time_refits_and_plans_have_keys_of_their_own(run, dense, groups):
    def task(**changes):
        other = with_prune(run, **changes)
        memory = StageMemory(other, dense, groups, "magnitude")
        return task_of(other, dense, groups, "magnitude", other.settings.prune.budget, memory)

    def key(**changes):
        made = task(**changes)
        return made.planning_settings(made.budget, last=True)

    fast, batched = (hp.LatencyTarget(**each) for each in ({"num_threads": 2}, {"batch_size": 7}))
    half = hp.Budget(latency_ms="50%")
    keys = [key(budget=half), key(budget=half, latency=fast), key(budget=half, latency=batched), key()]
    keys += [key(sequential=True), key(budget=hp.Budget(latency_ms="50%", target=fast), latency=batched)]
    assert keys[1] == keys.pop()
    assert all(one != other for one, other in combinations(keys, 2))


def test_another_plan_gets_another_model(run, dense, groups):
    def outcome(saliency_seed):
        memory = StageMemory(run, dense, groups, "random")
        task = task_of(run, dense, groups, "random", run.settings.prune.budget, memory)
        generator = torch.Generator().manual_seed(saliency_seed)
        values = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
        plan = hp.make_plan(dense.model, groups, values, task.budget, example_inputs=run.example)
        return plan, memory.model({"last": True}, plan, lambda: hp.apply_plan(dense.model, plan))

    for plan, model in (outcome(1), outcome(2), outcome(1)):
        expected = hp.apply_plan(dense.model, plan).state_dict()
        torch.testing.assert_close(dict(model.state_dict()), dict(expected))
