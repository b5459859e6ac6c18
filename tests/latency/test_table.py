"""Latency tables against a formula: what is timed layer by layer predicts every whole model."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.costs.budget import Budget
from hessprune.costs.latency_table import LatencyTable
from hessprune.costs.target import LatencyTarget
from hessprune.errors import ArgumentError, BudgetError, CheckpointError, RecipeError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.progress import listening
from hessprune.lab.recipe import parse_recipe
from hessprune.latency import table as tables
from hessprune.latency.table import latency_table
from hessprune.methods.values import Saliency
from hessprune.planning.planner import make_plan, plan_removing
from hessprune.planning.ranking import Ranking
from hessprune.pruning.memory import NoMemory
from hessprune.pruning.prune import carry_out
from hessprune.pruning.task import Task
from hessprune.structure.find import find_groups
from hessprune.surgery.apply import apply_plan
from tests.cases import Concat, Flatten, Grouped, Inverted, Plain, Residual, Shared, Transposed, image, make
from tests.latency.watches import Watch, by_macs, in_tiles

FINE = LatencyTarget(round_to=1)


class Chain(nn.Module):
    """Two wide groups, behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


def chain(formula=by_macs, target=FINE, **settings) -> tuple[nn.Module, tuple, torch.Tensor, Watch, LatencyTable]:
    torch.manual_seed(0)
    model, x = Chain(), torch.randn(2, 16)
    groups, watch = find_groups(model, x), Watch(x, formula, **settings)
    return model, groups, x, watch, latency_table(model, groups, x, target, timer=watch)


def values_of(groups, *, joint: bool = False) -> Saliency:
    generator, total = torch.Generator().manual_seed(0), sum(group.num_units for group in groups)
    values = {group.name: torch.rand(group.num_units, generator=generator).double() for group in groups}
    interactions = torch.zeros(total, total) if joint else None
    return Saliency(values, provenance={"method": "magnitude"}, interactions=interactions)


@pytest.mark.parametrize("case", [Plain, Residual, Concat, Grouped, Inverted, Transposed, Flatten, Shared])
def test_the_table_predicts_every_model_where_time_is_bilinear(case: type[nn.Module]) -> None:
    model, x = make(case), image()
    groups, watch = find_groups(model, x), Watch(x, per_value=1e-6, fixed=0.05)
    table = latency_table(model, groups, x, FINE, timer=watch)
    assert table.dense_ms == watch.ms(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        counts = {g.name: int(torch.randint(0, g.num_units, (), generator=generator)) for g in groups}
        removed = {name: range(number) for name, number in counts.items()}
        plan = plan_removing(model, groups, removed, Budget(units=0.5), example_inputs=x, provenance={})
        assert table.ms(counts) == pytest.approx(watch.ms(apply_plan(model, plan, check=False)), rel=1e-6)


def test_layers_of_one_shape_are_timed_once_for_each_pass() -> None:
    watch = chain()[3]
    assert len({case.shape for case in watch.timed}) == 3
    assert len(watch.timed) == tables.PASSES * len(set(watch.timed))


def test_times_are_kept_in_a_folder(tmp_path) -> None:
    model, groups, x, _, table = chain()
    first, second, other = Watch(x), Watch(x), Watch(x)
    for watch in (first, second):
        assert latency_table(model, groups, x, FINE, cache_dir=tmp_path, timer=watch) == table
    assert first.timed
    assert not second.timed
    latency_table(model, groups, x, LatencyTarget(round_to=1, num_threads=2), cache_dir=tmp_path, timer=other)
    assert other.timed
    other = Watch(x)
    latency_table(model.bfloat16(), groups, x, FINE, cache_dir=tmp_path, timer=other)
    assert other.timed
    model.float()
    for file in tmp_path.iterdir():
        file.write_text("{", encoding="utf-8")
    assert latency_table(model, groups, x, FINE, cache_dir=tmp_path, timer=Watch(x)) == table


def test_a_table_is_equal_to_its_json_round_trip() -> None:
    table = chain(per_value=1e-6, fixed=0.01)[-1].corrected({"a": 8}, 0.9)
    assert LatencyTable.from_json(table.to_json()) == table
    with pytest.raises(CheckpointError, match="complete JSON written by hessprune"):
        LatencyTable.from_json(table.to_json()[:-9])
    for damaged in ({"times": 3}, {"groups": []}, {"layers": {}}, {"scale": "x"}, {"dense_ms": float("nan")}):
        with pytest.raises(CheckpointError, match="complete JSON written by hessprune"):
            LatencyTable.from_json(json.dumps(json.loads(table.to_json()) | damaged))
    with pytest.raises(CheckpointError, match="complete JSON written by hessprune"):
        LatencyTable.from_json("[" * 100_000)
    with pytest.raises(CheckpointError, match="must have format 1"):
        LatencyTable.from_json(table.to_json().replace('"format": 1', '"format": 9'))


def test_groups_stop_only_at_widths_that_are_faster() -> None:
    table = chain(in_tiles(16), LatencyTarget(round_to=8))[-1]
    assert table.widths == {"a": (16, 32, 48, 64), "b": (16, 32, 48, 64)}
    assert [table.rounded("a", n) for n in (0, 15, 16, 40, 63)] == [0, 0, 16, 32, 48]
    assert table.rounded("a", 40, 32) == 32
    slow = chain(lambda shape, i, o: by_macs(shape, i, o) + (1.0 if 8 in (i, o) else 0), LatencyTarget(round_to=8))
    assert 8 not in slow[-1].widths["a"]


def test_what_is_left_has_a_table_of_its_own() -> None:
    table = chain(per_value=1e-5)[-1]
    left = table.after({"a": 24, "b": 8})
    assert left.units == (40, 56)
    assert left.dense_ms == table.ms({"a": 24, "b": 8})
    assert left.ms({"a": 8, "b": 16}) == pytest.approx(table.ms({"a": 32, "b": 24}))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("joint", [False, True])
def test_plans_meet_a_budget_of_time_within_a_step(share: float, joint: bool) -> None:
    model, groups, x, watch, table = chain(target=LatencyTarget(round_to=4))
    values, ranking = values_of(groups, joint=joint), Ranking(min_kept_fraction=0.0)
    half = Budget.keeping("latency_ms", share, table)
    budgets = [half, replace(half, latency_ms=share * table.dense_ms)]
    plans = [make_plan(model, groups, values, b, example_inputs=x, ranking=ranking) for b in budgets]
    assert plans[0].removed == plans[1].removed
    kept = watch.ms(apply_plan(model, plans[0])) / watch.ms(model)
    assert kept <= share + 1e-9
    assert kept == pytest.approx(plans[0].kept_fraction("latency_ms"), abs=1e-3)
    for group in groups:  # nothing can come back
        counts = {name: len(units) for name, units in plans[0].removed.items()}
        wider = table.rounded(group.name, max(counts[group.name] - 1, 0))
        assert not counts[group.name] or table.ms(counts | {group.name: wider}) > share * table.dense_ms
    assert hp.Plan.from_json(plans[0].to_json()) == plans[0]
    assert f"{plans[0].kept_fraction('latency_ms'):.1%} of latency_ms kept" in str(plans[0])


@pytest.mark.parametrize("joint", [False, True])
def test_units_of_slow_layers_go_first(joint: bool) -> None:
    def formula(shape, inputs, outputs):
        return by_macs(shape, inputs, outputs) + (0.02 * outputs if shape.inputs == 16 else 0)

    model, groups, x, _, table = chain(formula)
    same = Saliency(
        {g.name: torch.ones(64) for g in groups},
        provenance={},
        interactions=values_of(groups, joint=joint).interactions,
    )
    plan = make_plan(model, groups, same, Budget(latency_ms="60%", target=table), example_inputs=x)
    assert len(plan.removed["a"]) > 20
    assert not plan.removed["b"]


def test_removal_for_agrees_with_the_plan() -> None:
    model, groups, x, _, table = chain()
    values, budget = values_of(groups), Budget(latency_ms="50%", target=table)
    plan = make_plan(model, groups, values, budget, example_inputs=x)
    removed = hp.removal_for(model, groups, budget, example_inputs=x)(values)
    assert {name: tuple(mask.nonzero()[:, 0].tolist()) for name, mask in removed.items()} == plan.removed


def planner(model, groups, x, budget: Budget) -> Callable[[LatencyTable], hp.Plan]:
    values = values_of(groups)
    return lambda table: make_plan(model, groups, values, replace(budget, target=table), example_inputs=x)


def test_plans_are_measured_and_the_table_is_corrected() -> None:
    model, groups, x, _, table = chain()
    watch, budget = Watch(x, fixed=0.02), Budget(latency_ms="60%")
    plan_with = planner(model, groups, x, budget)
    settled = tables.settled(table, model, x, plan_with, timer=watch)
    plan = plan_with(settled)
    facts = plan.provenance["latency"]
    assert watch.ms(apply_plan(model, plan)) / watch.ms(model) == pytest.approx(0.6, rel=0.05)
    assert 1 < len(settled.checks) <= tables.ROUNDS
    assert facts["measured_ms"] == pytest.approx(facts["predicted_ms"], rel=tables.TOLERANCE)
    assert tables.with_measured_latency(plan, model, x) is plan
    unchecked = tables.with_measured_latency(plan_with(table), model, x, timer=watch)
    assert unchecked.provenance["latency"]["measured_ms"] > 0


def test_a_right_table_is_taken_as_it_is() -> None:
    model, groups, x, watch, table = chain()
    settled = tables.settled(table, model, x, planner(model, groups, x, Budget(latency_ms="50%")), timer=watch)
    assert settled.scale == table.scale == 1
    assert len(settled.checks) == 1


@pytest.mark.parametrize(
    ("per_value", "fixed", "s"), [(1e-5, 0.0, 0.5), (0.0, 0.0, 1.5), (0.0, 0.2, 0.5), (1e-5, 1.0, 1.0)]
)
def test_one_model_of_half_the_width_calibrates_the_rest(per_value: float, fixed: float, s: float) -> None:
    model, groups, x, watch, table = chain(per_value=per_value, fixed=fixed, s=s)
    half = {"a": 32, "b": 32}
    removed = {name: range(number) for name, number in half.items()}
    plan = plan_removing(model, groups, removed, Budget(units=0.5), example_inputs=x, provenance={})
    assert table.ms(half) == pytest.approx(watch.ms(apply_plan(model, plan)))


def test_prune_measures_by_itself(monkeypatch) -> None:
    model, _, x, _, table = chain()
    watches = []

    def timer(_model, example, _target):
        watches.append(Watch(example, s=0.8))
        return watches[-1]

    monkeypatch.setattr(tables, "TorchTimer", timer)
    batches = [(torch.randn(32, 16), torch.arange(32) % 4)]
    for target in (FINE, None, table):
        budget = Budget(latency_ms="50%", target=target)
        result = hp.prune(model, x[:1], batches, budget=budget, method="magnitude", compensate=False)
        assert 0.4 < watches[-1].ms(result.model) / watches[-1].ms(model) <= 0.5 * (1 + tables.TOLERANCE)
        assert result.plan.provenance["latency"]["measured_ms"] > 0
    budget, ranking = Budget(latency_ms="50%", target=FINE), Ranking(step=0.25)
    stepped = hp.prune(model, x, batches, budget=budget, method="magnitude", compensate=False, ranking=ranking)
    assert watches[-1].ms(stepped.model) / watches[-1].ms(model) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("by", ["pattern", "module"])
@pytest.mark.parametrize("step", [1.0, 0.25])
def test_layers_stay_under_a_budget_of_time(monkeypatch: pytest.MonkeyPatch, by: str, step: float) -> None:
    model, _, x, _, _ = chain()
    monkeypatch.setattr(tables, "TorchTimer", lambda _model, example, _target: Watch(example))
    batches = [(torch.randn(32, 16), torch.arange(32) % 4)]
    ranking = Ranking(ignore=("a",) if by == "pattern" else (model.a,), step=step)
    budget = Budget(latency_ms="70%", target=FINE)
    result = hp.prune(model, x, batches, budget=budget, method="magnitude", compensate=False, ranking=ranking)
    assert result.model.a.out_features == 64 > result.model.b.out_features


def test_steps_end_at_shares_of_the_dense_latency(monkeypatch) -> None:
    model, groups, x, _, table = chain()
    monkeypatch.setattr(tables, "TorchTimer", lambda _model, example, _target: Watch(example))
    shares = []

    class Shares(NoMemory):
        """Remembers the predicted latency at the end of every step."""

        def plan(self, settings, make):
            plan = make()
            shares.append(plan.kept_fraction("latency_ms"))
            return plan

    task = Task(
        model=model,
        example_inputs=x,
        batches=Rereadable([(torch.randn(32, 16), torch.arange(32) % 4)]),
        budget=Budget(latency_ms="40%", target=table),
        method=hp.Magnitude(),
        ranking=Ranking(step=0.25),
        groups=groups,
        memory=Shares(),
    )
    carry_out(task)
    assert shares == pytest.approx([0.75, 0.5, 0.4], abs=0.03)
    assert all(share <= limit + 1e-9 for share, limit in zip(shares, (0.75, 0.5, 0.4), strict=True))


def test_what_is_refused() -> None:
    model, groups, x, _, table = chain()
    values, budget = values_of(groups), Budget(latency_ms="50%")
    for target in (None, LatencyTarget()):
        missing = replace(budget, target=target)
        with pytest.raises(BudgetError, match=r"needs a latency table here. Pass Budget\(latency_ms=…, target=hp.lat"):
            make_plan(model, groups, values, missing, example_inputs=x)
        with pytest.raises(BudgetError, match=r"needs a latency table here"):
            hp.removal_for(model, groups, missing, example_inputs=x)
    with pytest.raises(ArgumentError, match=r"`implant` must be 0 with `Budget\(latency_ms='50%'\)`, got 0.5"):
        make_plan(model, groups, values, replace(budget, target=table), example_inputs=x, implant=0.5)
    with pytest.raises(BudgetError, match=r'narrower layers do not measure as faster.*at least latency_ms=".*%"'):
        make_plan(model, groups, values, Budget(latency_ms=1e-9, target=table), example_inputs=x)
    with pytest.raises(BudgetError, match=r"latency_ms=50\)` must be below the dense model's 0"):
        make_plan(model, groups, values, Budget(latency_ms=50, target=table), example_inputs=x)
    with pytest.raises(ArgumentError, match="`runtime` must be"):
        LatencyTarget(runtime="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="`round_to` must be"):
        LatencyTarget(round_to=0)
    recipe = {"model": {"weights": "a"}, "prune": {"budget": {"latency_ms": 0.5}, "implant": {"share": 0.2}}}
    with pytest.raises(RecipeError, match="`implant` must be 0 with"):
        parse_recipe(recipe)


def test_recipes_say_where_latency_counts() -> None:
    recipe = {
        "model": {"weights": "a"},
        "prune": {"budget": {"latency_ms": 0.8}, "latency": {"runtime": "onnxruntime-int8", "batch_size": 8}},
    }
    settings = parse_recipe(recipe)
    assert settings.prune.budget == Budget(latency_ms=0.8)
    assert settings.prune.latency == LatencyTarget(runtime="onnxruntime-int8", batch_size=8)
    assert parse_recipe(settings.to_json()) == settings
    recipe["prune"]["budget"] = {"latency_ms": "50%", "target": {"batch_size": 8}}
    settings = parse_recipe(recipe)
    assert settings.prune.budget == Budget(latency_ms="50%", target=LatencyTarget(batch_size=8))
    assert parse_recipe(settings.to_json()) == settings


def test_progress_is_reported() -> None:
    class Listener:
        def __init__(self) -> None:
            self.labels: list[str] = []

        def start(self, label, total):
            self.labels.append(label)
            return 0

        def advance(self, handle, steps, note):
            pass

        def finish(self, handle):
            pass

    with listening(listener := Listener()):
        chain()
    assert "timing layers" in listener.labels


@pytest.mark.parametrize("wrong", [{"nowhere": 1}, {"0": -1}, {"0": 10_000}])
def test_numbers_of_units_that_are_not_there_are_refused(wrong: dict[str, int]) -> None:
    table = chain()[4]
    with pytest.raises(ArgumentError, match="`num_removed` must hold numbers of units"):
        table.ms(wrong)
