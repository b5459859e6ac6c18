"""Three zones from one budget: shares, the hull of options against brute force, floors, and what a plan remembers."""

import itertools
import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.methods import Saliency
from hessprune.planning.implants import Implant, Options, implant_options
from hessprune.planning.joint import select_jointly
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.planning.ranking import Ranking
from hessprune.planning.zones import Zones, select_zones
from hessprune.structure.groups import Groups
from tests.cases import Inverted, Plain, Residual, image, make

X = image()
LOOSE = Ranking(min_kept_fraction=0.0)


def one_group() -> tuple[nn.Module, Groups, CostModel, Tensor]:
    """Eight units between two fixed layers: costs add up, so that brute force knows the optimum."""
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3)), torch.zeros(1, 3, 6, 6)
    groups = hp.find_groups(net, x)
    return net, groups, CostModel(net, x, groups, {"0": None}), x


def random_losses(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    removed = torch.rand(8, generator=generator, dtype=torch.float64)
    return removed, removed * torch.rand(8, generator=generator, dtype=torch.float64) * 0.5


def zones_for(seed: int, macs: float, ranking: Ranking = LOOSE) -> tuple[Zones, CostModel]:
    _, groups, costs, _ = one_group()
    removed, implanted = random_losses(seed)
    budget, values = hp.Budget(macs=macs), {"0": removed}
    options = implant_options(
        groups, values, {"0": implanted}, costs, budget=budget, carriers={"0": ("0",)}, share="auto"
    )
    return select_zones(groups, values, costs, budget=budget, ranking=ranking, options=options), costs


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("macs", [0.75, 0.5, 0.3])
def test_no_other_assignment_of_at_most_that_cost_loses_less(seed: int, macs: float) -> None:
    zones, costs = zones_for(seed, macs)
    removed, implanted = random_losses(seed)
    table = torch.stack([torch.zeros(8, dtype=torch.float64), implanted, removed])

    def loss(zone: tuple[int, ...]) -> float:
        return float(table[list(zone), range(8)].sum())

    chosen = tuple(2 if u in zones.removed["0"] else int(u in zones.implanted["0"]) for u in range(8))
    spent = {
        (gone, small): costs.spent("macs", {"0": gone}, {"0": small}) for gone in range(9) for small in range(9 - gone)
    }
    reached = spent[chosen.count(2), chosen.count(1)]
    assert reached <= macs * costs.dense.macs
    held = chosen.index(0) if chosen.count(0) == 1 else None  # the last unit may not leave
    every = (zone for zone in itertools.product(range(3), repeat=8) if held is None or zone[held] == 0)
    assert loss(chosen) <= min(loss(z) for z in every if spent[z.count(2), z.count(1)] <= reached) + 1e-12


def test_both_zones_are_used_and_a_poor_stand_in_is_not() -> None:
    zones, _ = zones_for(0, 0.3)
    assert zones.removed["0"]
    assert zones.implanted["0"]
    _, groups, costs, _ = one_group()
    poor = {"0": 0.99 * random_losses(0)[0]}
    budget, values = hp.Budget(macs=0.5), {"0": random_losses(0)[0]}
    options = implant_options(groups, values, poor, costs, budget=budget, carriers={"0": ("0",)}, share="auto")
    assert not select_zones(groups, values, costs, budget=budget, ranking=LOOSE, options=options).implanted["0"]


def test_floors_count_whole_units() -> None:
    zones, _ = zones_for(1, 0.75, Ranking(min_kept_fraction=0.5))
    assert len(zones.removed["0"]) + len(zones.implanted["0"]) <= 4


def test_the_saving_is_that_of_the_cost_model() -> None:
    _, groups, costs, _ = one_group()
    options = implant_options(
        groups, {"0": torch.ones(8)}, {"0": torch.ones(8)}, costs, budget=hp.Budget(macs=0.5), carriers={"0": ("0",)},
        share="auto",
    )  # fmt: skip
    producer, consumer = 36 * 27, 16 * 9 * 2
    assert options.saving["0"] == pytest.approx((producer * 8 / 9) / (producer + consumer))


@pytest.mark.parametrize("method", ["ranked", "joint"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_implants_the_most_salient_of_those_that_leave(method: str, share: float) -> None:
    _, groups, costs, _ = one_group()
    values = {"0": torch.tensor([3.0, 1, 4, 2, 8, 5, 7, 6]).double()}
    options = Options(share=share, loss={"0": np.ones(8)}, saving={"0": 0.7})
    budget = hp.Budget(macs=0.5)
    if method == "joint":
        zones = select_jointly(groups, values, torch.zeros(8, 8), costs, budget=budget, ranking=LOOSE, options=options)
    else:
        zones = select_zones(groups, values, costs, budget=budget, ranking=LOOSE, options=options)
    removed, implanted = zones.removed["0"], zones.implanted["0"]
    assert len(implanted) == int(share * (len(removed) + len(implanted)) + 0.5)
    order = values["0"].argsort().tolist()
    assert set(removed) == set(order[: len(removed)])
    assert set(implanted) == set(order[len(removed) : len(removed) + len(implanted)])
    assert zones.spent(costs, "macs") <= 0.5 * costs.dense.macs


@pytest.mark.parametrize("seed", range(3))
def test_without_interactions_joint_selection_takes_the_same_steps(seed: int) -> None:
    _, groups, costs, _ = one_group()
    removed, implanted = random_losses(seed)
    budget, values = hp.Budget(macs=0.5), {"0": removed}
    options = implant_options(
        groups, values, {"0": implanted}, costs, budget=budget, carriers={"0": ("0",)}, share="auto"
    )
    ranked = select_zones(groups, values, costs, budget=budget, ranking=LOOSE, options=options)
    joint = select_jointly(groups, values, torch.zeros(8, 8), costs, budget=budget, ranking=LOOSE, options=options)
    assert (joint.removed, joint.implanted) == (ranked.removed, ranked.implanted)


def test_interactions_weigh_an_implant_by_what_it_loses() -> None:
    """Units 0 and 1 do the same: once one of them is replaced in half, the other is dearer."""
    _, groups, costs, _ = one_group()
    values = {"0": torch.tensor([1.0, 1.1, 1.5, 9, 9, 9, 9, 9]).double()}
    together = torch.zeros(8, 8)
    together[0, 1] = together[1, 0] = 10.0
    options = Options(share="auto", loss={"0": np.full(8, 0.1)}, saving={"0": 0.6})
    budget = hp.Budget(macs=0.86)
    zones = select_jointly(groups, values, together, costs, budget=budget, ranking=LOOSE, options=options)
    assert set(zones.implanted["0"] + zones.removed["0"]) == {0, 2}


def test_implants_stay_in_joint_plans_with_signed_interactions() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    size = sum(group.num_units for group in groups)
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = root @ root.T / size
    parts = dict(
        zip([g.name for g in groups], (square.diagonal() / 2).split([g.num_units for g in groups]), strict=True)
    )
    losses = {name: value * torch.linspace(0.1, 0.9, len(value)) for name, value in parts.items()}
    saliency = Saliency(parts, provenance={}, interactions=square, implant_losses=losses)
    for implant in ("auto", 0.3):
        plan = hp.make_plan(model, groups, saliency, hp.Budget(macs=0.6), example_inputs=X, implant=implant)
        assert plan.num_implanted
        assert plan.num_removed
        assert plan.cost_after.macs <= 0.6 * plan.cost_before.macs
        assert all(not set(units) & set(plan.removed[name]) for name, units in plan.implanted.items())


def saliency_for(groups: Groups, share: float = 0.2) -> Saliency:
    values = {group.name: torch.arange(1.0, group.num_units + 1).double() for group in groups}
    return Saliency(values, provenance={}, implant_losses={name: share * value for name, value in values.items()})


def plan_with(implant: float | str | Implant, case: type[nn.Module] = Residual) -> Plan:
    model = make(case)
    groups = hp.find_groups(model, X)
    return hp.make_plan(model, groups, saliency_for(groups), hp.Budget(macs=0.6), example_inputs=X, implant=implant)


def test_zero_changes_nothing() -> None:
    assert plan_with(0.0) == plan_with(0)
    assert "implant" not in plan_with(0.0).provenance
    assert json.loads(plan_with(0.0).to_json())["format"] == 1


def test_a_plan_remembers_its_zones() -> None:
    plan = plan_with("auto")
    assert plan.num_implanted == sum(len(units) for units in plan.implanted.values()) > 0
    assert Plan.from_json(plan.to_json()) == plan
    for group in plan.groups:
        units = (*plan.kept[group.name], *plan.implanted.get(group.name, ()), *plan.removed[group.name])
        assert sorted(units) == list(range(group.num_units))
    assert f"units removed, {plan.num_implanted} implanted)" in str(plan)
    assert "units kept, " in str(plan)
    assert plan.provenance["implant"] == {"share": "auto", "rank": None, "start": "fitted"}


def test_plans_of_older_versions_load() -> None:
    old = json.loads(plan_with(0.0).to_json())
    del old["implanted"], old["stand_ins"]
    assert Plan.from_json(json.dumps(old)) == plan_with(0.0)


def test_units_without_a_kernel_are_never_implanted() -> None:
    plan = plan_with("auto", Inverted)
    assert set(plan.implanted) <= {"stem.0"}


def test_given_units_can_be_implanted() -> None:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    facts: Mapping = {"example_inputs": X, "provenance": {}}
    plan = plan_removing(
        model, groups, {"body.0.0": (1,)}, hp.Budget(macs=0.9), implanted={"body.0.0": (3, 2)}, **facts
    )
    assert plan.implanted == {"body.0.0": (2, 3)}
    assert plan.stand_ins == {"body.0.0": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, r"`implant` must be a number from 0 to 1, got 1\.5"),
        ({"share": "some"}, r"`implant` must be a number from 0 to 1 or 'auto', got 'some'"),
        ({"rank": 0}, "`rank` must be an integer of at least 1, got 0"),
        ({"start": "center"}, "`start` must be one of .* Did you mean 'centre'"),
    ],
)
def test_wrong_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(hp.errors.ArgumentError, match=message):
        Implant(**arguments)


def test_what_is_missing_is_named() -> None:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    plain = {group.name: torch.ones(group.num_units) for group in groups}
    with pytest.raises(
        hp.errors.ArgumentError, match=r"`implant`='auto' needs a saliency .* `implant_losses\(model, groups"
    ):
        hp.make_plan(model, groups, plain, hp.Budget(macs=0.6), example_inputs=X, implant="auto")
    linear = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = hp.find_groups(linear, torch.zeros(1, 4))
    values, x = {"0": torch.ones(8)}, torch.zeros(1, 4)
    with pytest.raises(hp.errors.ArgumentError, match="no unit has a plain convolution with a kernel larger than 1"):
        hp.make_plan(linear, groups, values, hp.Budget(macs=0.6), example_inputs=x, implant=0.2)


def test_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(hp.errors.BudgetError, match="Ask for at least macs="):
        zones_for(0, 0.01, Ranking(min_kept_fraction=0.5))
