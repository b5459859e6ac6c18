"""Saliencies are kept by content: shared where nothing changed, never where something did."""

import copy
from dataclasses import replace

import pytest
import torch

from hessprune.lab.context import open_run
from hessprune.lab.decisions import score, scoring_settings
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.store import load_saliency
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
def model(run):
    return run.fresh_model()


@pytest.fixture(scope="module")
def groups(run, model):
    return find_groups(model, run.example)


def with_prune(run, **changes):
    return replace(run, settings=replace(run.settings, prune=replace(run.settings.prune, **changes)))


def test_another_budget_costs_nothing(run, model, groups):
    first = score(run, model, groups, "magnitude")
    again = score(with_prune(run, compensate=False, step=0.3), model, groups, "magnitude")
    assert (first.folder, again.reused) == (again.folder, True)
    assert list(load_saliency(again.folder)) == [group.name for group in groups]


def test_other_weights_data_settings_groups_or_method_are_measured_anew(run, model, groups):
    score(run, model, groups, "magnitude")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv1.weight.mul_(2)
    changed = [
        (run, other, groups, "magnitude"),
        (replace(run, data=run.data.with_calibration(5)), model, groups, "magnitude"),
        (replace(run, data=run.data.with_normalisation((0.0,), (1.0,))), model, groups, "magnitude"),
        (with_prune(run, estimator="rademacher"), model, groups, "magnitude"),
        (with_prune(run, num_probes=3), model, groups, "magnitude"),
        (run, model, groups[1:], "magnitude"),
        (run, model, groups, "random"),
    ]
    stages = [score(*arguments) for arguments in changed]
    assert not any(stage.reused for stage in stages)
    assert len({stage.folder for stage in stages}) == len(changed)
    assert score(run, model, groups, "magnitude").reused


def test_settings_carry_the_number_of_probes(run):
    assert scoring_settings(run, "hap").options is None
    assert scoring_settings(with_prune(run, num_probes=7), "hap").options.num_probes == 7
