"""The setting `implant`: its checks, and what a plan remembers of it."""

import json

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.planning.implants import Implant, ImplantShare
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from tests.cases import Inverted, Plain, Residual, image, make

X = image()


def plan_with(implant: float | Implant, case: type[nn.Module] = Residual) -> Plan:
    model = make(case)
    groups = hp.find_groups(model, X)
    values = {group.name: torch.arange(1.0, group.num_units + 1).double() for group in groups}
    return hp.make_plan(model, groups, values, hp.Budget(macs=0.6), example_inputs=X, implant=implant)


def test_zero_changes_nothing() -> None:
    assert plan_with(0.0) == plan_with(0) == plan_with(Implant(share=0))
    assert "implant" not in plan_with(0.0).provenance
    assert json.loads(plan_with(0.0).to_json())["format"] == 1


def test_a_plan_remembers_its_zones() -> None:
    plan = plan_with(0.5)
    assert plan.num_implanted == sum(len(units) for units in plan.implanted.values()) > 0
    assert Plan.from_json(plan.to_json()) == plan
    for group in plan.groups:
        units = (*plan.kept[group.name], *plan.implanted.get(group.name, ()), *plan.removed[group.name])
        assert sorted(units) == list(range(group.num_units))
    assert f"units removed, {plan.num_implanted} implanted" in str(plan)
    assert "implanted" in plan.table().splitlines()[0]
    assert plan.provenance["implant"] == {"share": 0.5, "rank": None, "start": "fitted"}


@pytest.mark.parametrize("old", [{"share": "auto", "rank": None, "start": "centre"}, {"share": 0.5, "start": "centre"}])
def test_plans_with_settings_of_older_versions_load(old: dict[str, object]) -> None:
    data = json.loads(plan_with(0.5).to_json())
    data["provenance"]["implant"] = old
    del data["shapes"]
    assert Plan.from_json(json.dumps(data)).provenance["implant"] == old
    data = json.loads(plan_with(0.0).to_json())
    del data["implanted"], data["stand_ins"]
    assert Plan.from_json(json.dumps(data)) == plan_with(0.0)


def test_units_without_a_kernel_are_never_implanted() -> None:
    assert set(plan_with(0.5, Inverted).implanted) <= {"stem.0"}


def test_chosen_units_can_be_implanted() -> None:
    model = make(Plain)
    groups, facts = hp.find_groups(model, X), {"example_inputs": X, "provenance": {}}
    implanted = {"body.0.0": (3, 2)}
    plan = plan_removing(model, groups, {"body.0.0": (1,)}, hp.Budget(macs=0.9), implanted=implanted, **facts)
    assert plan.implanted == {"body.0.0": (2, 3)}
    assert plan.stand_ins == {"body.0.0": None}


def test_a_share_is_rounded_to_the_nearest_unit() -> None:
    implants = ImplantShare(share=0.5, groups=())
    assert [implants.number(number) for number in range(5)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 1.5}, r"`implant` must be a number from 0 to 1, got 1\.5"),
        ({"share": "auto"}, r"`implant` must be a number from 0 to 1, got 'auto'"),
        ({"share": 0.5, "rank": 0}, "`rank` must be an integer of at least 1, got 0"),
        ({"share": 0.5, "start": "fited"}, "`start` must be one of .* Did you mean 'fitted'"),
    ],
)
def test_wrong_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(hp.errors.ArgumentError, match=message):
        Implant(**arguments)


def test_models_that_cannot_carry_stand_ins_are_refused() -> None:
    linear = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.zeros(1, 4)
    groups = hp.find_groups(linear, x)
    with pytest.raises(hp.errors.ArgumentError, match="no unit has a plain convolution with a kernel larger than 1"):
        hp.make_plan(linear, groups, {"0": torch.ones(8)}, hp.Budget(macs=0.6), example_inputs=x, implant=0.2)
