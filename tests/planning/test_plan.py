import json

import pytest
import torch
from torch import Tensor

from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError, BudgetError, CheckpointError
from hessprune.foundation.hashing import weights_sha256
from hessprune.methods.values import Saliency
from hessprune.planning.inputs import describe_inputs
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan
from hessprune.planning.ranking import Ranking
from hessprune.structure.find import find_groups
from hessprune.surgery.apply import apply_plan
from tests.cases import Flatten, Grouped, Plain, Residual, image, make

MODEL, X = make(Plain), image()
GROUPS = find_groups(MODEL, X)


def ascending() -> dict[str, Tensor]:
    return {group.name: torch.arange(1.0, group.num_units + 1) for group in GROUPS}


def plan_with(ranking: Ranking | None = None, budget: Budget | None = None) -> Plan:
    return make_plan(MODEL, GROUPS, ascending(), budget or Budget(macs=0.5), example_inputs=X, ranking=ranking)


def test_the_budget_is_met_within_one_unit() -> None:
    for fraction in (0.9, 0.6, 0.35):
        plan = plan_with(Ranking(min_kept_fraction=0.0), Budget(macs=fraction))
        limit = fraction * plan.cost_before.macs
        assert plan.cost_after.macs <= limit
        largest = 8 * 8 * 9 * (3 + 12)  # no unit of this network saves more
        assert plan.cost_after.macs > limit - largest


def test_the_least_salient_units_go_first_in_every_group() -> None:
    for units in plan_with().removed.values():
        assert units == tuple(range(len(units)))


def test_without_cost_the_ranking_is_by_saliency_alone() -> None:
    plan = plan_with(Ranking(per_cost=False, min_kept_fraction=0.0))
    threshold = max(len(units) for units in plan.removed.values())
    assert all(len(units) in (threshold, threshold - 1) for units in plan.removed.values())


def test_per_cost_removes_more_where_units_are_dear() -> None:
    by_cost, plain = plan_with(Ranking(per_cost=True)), plan_with(Ranking(per_cost=False))
    assert len(by_cost.removed["body.0.0"]) > len(plain.removed["body.0.0"])


def test_keeping_everything_is_a_plan() -> None:
    plan = plan_with(budget=Budget(params=1.0))
    assert plan.num_removed == 0
    assert plan.cost_after == plan.cost_before


def test_floors_hold() -> None:
    plan = plan_with(Ranking(min_kept_fraction=0.5), Budget(macs=0.4))
    assert all(2 * len(plan.kept[group.name]) >= group.num_units for group in GROUPS)


def test_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(
        BudgetError, match=r"leaves macs = [\d,]+, 0\.\d+ of the dense model .* Ask for at least macs=0"
    ):
        plan_with(Ranking(min_kept_fraction=0.5), Budget(macs=0.1))


@pytest.mark.parametrize("case", [Plain, Residual, Grouped, Flatten])
def test_round_to_keeps_multiples(case: type[torch.nn.Module]) -> None:
    model = make(case)
    groups = find_groups(model, X)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    plan = make_plan(model, groups, saliency, Budget(params=0.7), example_inputs=X, ranking=Ranking(round_to=4))
    for group in groups:
        width = len(group.slices_with_role("producer")[0].index[0])
        if plan.removed[group.name]:
            assert len(plan.kept[group.name]) * width % 4 == 0


def test_ignored_groups_stay_whole() -> None:
    plan = plan_with(Ranking(ignore=("body.1*",)))
    assert plan.removed["body.1.0"] == ()
    with pytest.raises(ArgumentError, match="`ignore` must match group names, got 'boddy'"):
        plan_with(Ranking(ignore=("boddy",)))


def test_ignoring_every_group_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`ignore` must leave a group to prune, got \('\*',\)"):
        plan_with(Ranking(ignore=("*",)))


def test_floors_of_unknown_groups_are_refused_by_name() -> None:
    floors = (("body.0.0", 4), ("body.00", 4))
    with pytest.raises(ArgumentError, match=r"`min_kept_units` must name groups, got 'body.00'. Did you mean 'body"):
        plan_with(Ranking(min_kept_units=floors))


def test_a_plan_is_made_at_once() -> None:
    with pytest.raises(ArgumentError, match=r"`ranking.step` must be 1 .* got 0.25: hp.prune measures in between"):
        plan_with(Ranking(step=0.25))


def test_wrong_types_are_one_error() -> None:
    with pytest.raises(ArgumentError, match=r"`ranking` must be a Ranking, got {'round_to': 8}. Write ranking=hp.Ran"):
        plan_with({"round_to": 8})  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"`budget` must be a Budget, got 0.5. Write budget=hp.Budget\(macs=0.5\)"):
        plan_with(budget=0.4 + 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("joint", [False, True])
def test_a_budget_in_units_ignores_cost(joint: bool) -> None:
    total = sum(group.num_units for group in GROUPS)
    generator = torch.Generator().manual_seed(0)
    values = {group.name: torch.rand(group.num_units, generator=generator) for group in GROUPS}
    saliency = Saliency(values, provenance={}, interactions=torch.zeros(total, total) if joint else None)
    free = Ranking(min_kept_fraction=0)
    plan = make_plan(MODEL, GROUPS, saliency, Budget(units=0.75), example_inputs=X, ranking=free)
    removed = torch.cat([values[name][list(units)] for name, units in plan.removed.items()])
    least = torch.cat(list(values.values())).sort().values[: len(removed)]
    assert 0.75 - 1 / total < plan.kept_fraction("units") <= 0.75
    assert torch.equal(removed.sort().values, least)


def test_latency_budgets_are_refused() -> None:
    with pytest.raises(BudgetError, match="needs a latency table"):
        plan_with(budget=Budget(latency_ms=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("body.0.0"), "must have an entry for group 'body.0.0'"),
        (lambda values: values.update({"body.0.0": torch.ones(3)}), r"must have shape \(8,\), got \(3,\)"),
        (lambda values: values.update({"body.0.0": torch.full((8,), torch.nan)}), "must be finite"),
    ],
)
def test_wrong_saliencies(change: object, message: str) -> None:
    values = ascending()
    change(values)  # type: ignore[operator]
    with pytest.raises(ArgumentError, match=message):
        make_plan(MODEL, GROUPS, values, Budget(macs=0.5), example_inputs=X)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round_to", 0),
        ("round_to", 1.5),
        ("min_kept_fraction", 1.5),
        ("min_kept_fraction", "0.1"),
        ("step", 0),
        ("step", 2),
        ("per_cost", "yes"),
        ("ignore", "layer1.*"),
        ("ignore", (3,)),
        ("min_kept_units", 3),
        ("min_kept_units", {"body.0.0": 3}),
        ("min_kept_units", (("body.0.0", 0.5),)),
        ("min_kept_units", ("body.0.0",)),
    ],
)
def test_wrong_rankings(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must be"):
        Ranking(**{name: value})


@pytest.mark.parametrize("case", [Plain, Residual, Grouped, Flatten])
def test_json_round_trip(case: type[torch.nn.Module]) -> None:
    model = make(case)
    groups = find_groups(model, X)
    saliency = {group.name: torch.rand(group.num_units) for group in groups}
    plan = make_plan(model, groups, saliency, Budget(params=0.7), example_inputs=X)
    assert Plan.from_json(plan.to_json()) == plan


def test_broken_json_is_one_clear_error() -> None:
    text = plan_with().to_json()
    for broken in (text[: len(text) // 2], "[]", "{}"):
        with pytest.raises(CheckpointError, match="must be complete JSON written by hessprune"):
            Plan.from_json(broken)
    newer = json.dumps({**json.loads(text), "format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        Plan.from_json(newer)


def test_provenance_names_the_weights() -> None:
    plan = plan_with()
    assert plan.provenance["weights_sha256"] == weights_sha256(MODEL)
    assert plan.provenance["ranking"]["per_cost"] is True


def test_inputs_are_described_and_made_again() -> None:
    inputs = {"ids": torch.tensor([[1, 7]]), "more": (torch.zeros(2, 3), None)}
    again = describe_inputs(inputs).example()
    assert again["ids"].shape == (1, 2)
    assert int(again["ids"].max()) <= 7
    assert again["more"][0].dtype == torch.float32
    assert again["more"][1] is None


def test_a_plan_prints_in_a_few_lines() -> None:
    plan = plan_with()
    assert str(plan).splitlines() == [
        f"Budget(macs=0.5): {plan.kept_fraction('macs'):.1%} of macs kept",
        f"{plan.cost_before} -> {plan.cost_after}",
        f"{plan.num_removed} of 30 units removed, in 3 groups",
    ]
    assert repr(plan) == f"Plan(Budget(macs=0.5), {plan.num_removed} of 30 units removed)"
    lines = plan.table().splitlines()
    assert len(lines) == 1 + len(GROUPS)
    assert lines[1].split() == ["body.0.0", "8", str(len(plan.kept["body.0.0"]))]


def test_a_plan_is_a_table_in_notebooks() -> None:
    page = plan_with()._repr_html_()
    assert "<td>body.1.0</td><td>12</td>" in page
    assert page.count("<table>") == page.count("</table>") == 2


def test_a_plan_is_plotted_as_bars() -> None:
    pytest.importorskip("matplotlib")
    plan = plan_with()
    axes = plan.plot().axes[0]
    widths = [[bar.get_width() for bar in container] for container in axes.containers]
    assert widths == [[len(plan.kept[g.name]) for g in GROUPS], [len(plan.removed[g.name]) for g in GROUPS]]


def test_a_plan_knows_the_shapes_that_it_gives() -> None:
    plan = plan_with()
    state = {name: tuple(tensor.shape) for name, tensor in apply_plan(MODEL, plan).state_dict().items()}
    assert plan.shapes_after == {name: state[name] for name in plan.shapes}
    assert plan.shapes["body.0.0.weight"] == (8, 3, 3, 3)
