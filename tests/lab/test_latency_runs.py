"""Budgets of time in recipes: measured once, kept, and read back by a run that is resumed."""

import pytest

from hessprune.lab import stages
from hessprune.lab.context import open_run
from hessprune.lab.decisions import decide, latency_target
from hessprune.lab.recipe import parse_recipe
from hessprune.latency import LatencyTarget
from hessprune.latency import table as tables
from hessprune.structure.find import find_groups
from tests.latency.watches import Watch

RECIPE = {
    "threads": 1,
    "data": {"validation_size": 60, "calibration_size": 64, "batch_size": 128},
    "model": {"pretrain": {"epochs": 0}},
    "prune": {"method": "magnitude", "budget": {"latency_ms": "60%"}, "latency": {"batch_size": 4, "round_to": 2}},
}


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_a_recipe_plans_by_time_and_resumes(step: float, tmp_path, monkeypatch) -> None:
    watches = []

    def timer(_model, example, _target):
        watches.append(Watch(example, fixed=0.1))
        return watches[-1]

    monkeypatch.setattr(tables, "TorchTimer", timer)
    settings = parse_recipe(RECIPE | {"prune": RECIPE["prune"] | {"step": step}})
    plans = []
    for _ in range(2):
        run = open_run(settings, tmp_path, tmp_path)
        dense = stages.dense_model(run)
        groups = find_groups(dense.model, run.example)
        plans.append({method: decide(run, dense, groups, method).plan for method in ("magnitude", "random")})
    assert plans[0] == plans[1]
    kept = plans[0]["magnitude"].provenance["latency"]
    assert kept["batch_size"] == 4
    assert kept["predicted_ms"] / kept["dense_ms"] <= 0.6
    assert kept["measured_ms"] / kept["dense_ms"] == pytest.approx(0.6, rel=0.1)
    assert plans[0]["random"].removed != plans[0]["magnitude"].removed
    pruned = stages.cut(run, dense, decide(run, dense, groups, "magnitude"))
    assert watches[-1].ms(pruned.model) / watches[-1].ms(dense.model) == pytest.approx(0.6, rel=0.1)
    assert sum(bool(watch.timed) for watch in watches) == 1  # one table for all methods and both runs


def test_where_a_recipe_counts_milliseconds(tmp_path) -> None:
    def target(**more):
        return latency_target(open_run(parse_recipe(RECIPE | more), tmp_path, tmp_path))

    plain = {"method": "magnitude", "budget": {"latency_ms": "60%"}}
    assert target() == LatencyTarget(batch_size=4, round_to=2)
    assert target(prune=plain, report={"latency_batch_size": 3}) == LatencyTarget(batch_size=3)
    assert target(prune=plain, quantize={}) == LatencyTarget(runtime="onnxruntime-int8", batch_size=1)


def test_the_target_of_the_budget_counts_before_the_section(tmp_path) -> None:
    budget = {"latency_ms": "60%", "target": {"batch_size": 7}}
    settings = parse_recipe(RECIPE | {"prune": RECIPE["prune"] | {"budget": budget}})
    assert latency_target(open_run(settings, tmp_path, tmp_path)) == LatencyTarget(batch_size=7)
