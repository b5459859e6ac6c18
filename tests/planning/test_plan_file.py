"""Plans as JSON: what is read is checked, and every problem is one line."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.costs.budget import Budget
from hessprune.errors import CheckpointError
from hessprune.planning.plan import Plan
from hessprune.planning.planner import make_plan
from tests.cases import Grouped, Plain, Residual, image, make

X = image()
MODEL = make(Plain)
GROUPS = hp.find_groups(MODEL, X)
PLAN = make_plan(
    MODEL, GROUPS, {group.name: torch.arange(float(group.num_units)) for group in GROUPS}, Budget(macs=0.5),
    example_inputs=X,
)  # fmt: skip
NAME = GROUPS[0].name
SLICE = ("groups", 0, "slices", 0)
PLAN_SLICE = json.loads(PLAN.to_json())["groups"][0]["slices"][0]
LITERAL = {"module": "body.0.0", "attribute": "groups", "counts": [1] * 8}


def changed(*path_and_value: Any) -> str:
    data = json.loads(PLAN.to_json())
    *path, last, value = path_and_value
    node = data
    for key in path:
        node = node[key]
    node[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path_and_value", "message"),
    [
        (("removed", NAME, [0, 999]), r"the units \[999\] in group 'body.0.0', which has 8"),
        (("removed", NAME, [0.5]), r"the units \[0.5\]"),
        (("removed", NAME, ["0"]), r"the units \['0'\]"),
        (("removed", NAME, [True]), r"the units \[True\]"),
        (("removed", NAME, [-1]), r"the units \[-1\]"),
        (("removed", NAME, [0, 0, 1]), "doubled units in group 'body.0.0'"),
        (("removed", "zzz", [0]), "units of the unknown group 'zzz'"),
        (("implanted", {NAME: [77]}), r"the units \[77\]"),
        (("implanted", {NAME: list(PLAN.removed[NAME])}), r"both removed and implanted"),
        (("stand_ins", {NAME: 0}), "impossible ranks"),
        (("shapes", {NAME: ["a"]}), "impossible shapes"),
        (("groups", 1, "name", NAME), "two groups of the same name"),
        (("groups", 0, "num_units", -1), "-1 units"),
        (("groups", 0, "num_units", 10**12), "1000000000000 units"),
        ((*SLICE, "dim", "0"), "dim '0'"),
        ((*SLICE, "role", "evil"), "the role 'evil'"),
        ((*SLICE, "index", []), "impossible positions"),
        ((*SLICE, "index", {"start": 0, "width": 0}), "positions {'start': 0, 'width': 0}"),
        ((*SLICE, "index", {"start": -8, "width": 1}), "positions {'start': -8"),
        ((*SLICE, "index", [["a"]] * 8), "impossible positions"),
        ((*SLICE, "index", [[0]] * 8), "doubled positions"),
        (("groups", 0, "literals", [{**LITERAL, "counts": []}]), "impossible counts of 'body.0.0.groups'"),
        (("inputs", None), "`inputs` of the plan must describe tensors, got None"),
        (("inputs", {"kind": "tensor", "shape": [1], "dtype": "load"}), "must describe tensors"),
        (("cost_after", "macs", "x"), "the cost {'macs': 'x'"),
        (("budget", {"macs": -1}), "BudgetError"),
        (("format", "new"), "TypeError"),
        (("format", 0.5), "the format 0.5"),
        (("groups", 0, "name", "x" * 10**6), "unknown group 'body.0.0'|two groups"),
        (("removed", "x" * 10**6, [0]), "unknown group 'xxx.*…x"),
        (("removed", NAME, list(range(8))), "all units of group 'body.0.0' removed"),
        (("groups", 0, "slices", []), "group 'body.0.0' without slices"),
        ((*SLICE, "index", {"start": 0, "width": 10**6}), "positions {'start': 0, 'width': 1000000}"),
        ((*SLICE, "index", {"start": 10**18, "width": 1}), "positions {'start': 1000000000000000000"),
        ((*SLICE, "index", {"start": 1, "width": 1}), "the shape .* of 'body.0.0.weight', too small for its slices"),
        ((*SLICE, "dim", 10**6), "the shape .* of 'body.0.0.weight', too small for its slices"),
        (("groups", 0, "slices", [PLAN_SLICE, PLAN_SLICE]), "'body.0.0.weight' in dim 0 in two slices at once"),
        (("groups", 0, "literals", [LITERAL, LITERAL]), "doubled literals of group 'body.0.0'"),
        (("groups", 0, "literals", {}), "literals {} of group"),
        (("stand_ins", {"body.0.0": 2}), "stand-ins in 'body.0.0', which emits no implanted units"),
        (("inputs", "shape", [10**9, 10**9]), "must describe tensors"),
        (("inputs", "shape", [10**30]), "must describe tensors"),
        (("inputs", "dtype", "quint8"), "must describe tensors"),
        (("inputs", "high", 2**70), "must describe tensors"),
        (("inputs", {"kind": "tuple", "items": "abc"}), "must describe tensors"),
        (("cost_after", "macs", "x" * 10**6), "the cost {'macs': 'xxx.*…"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_impossible_values_are_named_in_one_line(path_and_value: tuple[Any, ...], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Plan.from_json(changed(*path_and_value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", "[]", "{}", "", "nul"])
def test_what_is_no_plan_is_one_clear_error(text: str) -> None:
    with pytest.raises(CheckpointError, match="must be complete JSON written by hessprune"):
        Plan.from_json(text)


@pytest.mark.parametrize("case", [Plain, Residual, Grouped])
@pytest.mark.parametrize("budget", [Budget(macs="60%"), Budget(units=0.6), Budget(params=0.6)])
def test_budgets_come_back_as_they_were_written(case: type[nn.Module], budget: Budget) -> None:
    model = make(case)
    groups = hp.find_groups(model, X)
    plan = make_plan(model, groups, {g.name: torch.rand(g.num_units) for g in groups}, budget, example_inputs=X)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.budget.value == budget.value


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"latency_us": 800}, Budget(latency_ms=0.8)),
        ({"latency_us": 0.5}, Budget(latency_ms="50%")),
        ({"latency_ms": 0.25}, Budget(latency_ms="25%")),
        ({"latency_ms": 3.5}, Budget(latency_ms=3.5)),
    ],
)
def test_times_of_older_formats_keep_their_meaning(old: dict[str, float], now: Budget) -> None:
    data = json.loads(PLAN.to_json())
    assert data["format"] == 1
    assert Plan.from_json(json.dumps({**data, "budget": old})).budget == now


def test_a_time_is_written_in_a_format_that_older_versions_refuse() -> None:
    fields = {name: getattr(PLAN, name) for name in PLAN.__slots__}
    plan = Plan(**{**fields, "budget": Budget(latency_ms=0.5)})
    assert json.loads(plan.to_json())["format"] == 3
    assert Plan.from_json(plan.to_json()).budget == Budget(latency_ms=0.5)


@pytest.mark.parametrize(
    ("module", "attribute"), [("body.0.1", "training"), ("body.0.1", "eps"), ("body.0.0", "forward"), ("zz", "groups")]
)
def test_literals_must_count_something(module: str, attribute: str) -> None:
    literal = {"module": module, "attribute": attribute, "counts": [1] * 8}
    plan = Plan.from_json(changed("groups", 0, "literals", [literal]))
    with pytest.raises(CheckpointError, match=rf"'{module}.{attribute}' is no integer that counts its units"):
        hp.apply_plan(copy.deepcopy(MODEL), plan)


class Strided(nn.Module):
    """A layer of the user's own, with integers that count nothing and one that counts channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.stride, self.width = 2, 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu().view(len(x), self.width, -1)
        return self.linear(x[..., :: self.stride].mean(2))


@pytest.mark.parametrize(
    ("module", "attribute", "counts"),
    [("", "stride", [1, 0, 0, 0, 0, 0, 0, 1]), ("", "stride", [1] + [0] * 7), ("conv", "in_channels", [1] + [0] * 7)],
)
def test_literals_change_no_attribute_that_counts_something_else(module: str, attribute: str, counts: list) -> None:
    model = make(Strided)
    groups = hp.find_groups(model, X)
    assert [(item.attribute, item.counts) for item in groups[0].literals] == [("width", (1,) * 8)]
    saliency = {"conv": torch.arange(8.0)}
    plan = make_plan(model, groups, saliency, Budget(units=0.5), example_inputs=X)
    data = json.loads(plan.to_json())
    data["groups"][0]["literals"].append({"module": module, "attribute": attribute, "counts": counts})
    tampered = Plan.from_json(json.dumps(data))
    with pytest.raises(CheckpointError, match=rf"{attribute}' is no integer that counts its units"):
        hp.apply_plan(model, tampered, check=False)
    assert hp.apply_plan(model, plan).width == 4


@pytest.mark.parametrize("layer", ["body.0.1", "nowhere"])
def test_stand_ins_go_into_layers_of_the_model_only(layer: str) -> None:
    stand_in = {name: getattr(PLAN, name) for name in PLAN.__slots__} | {"stand_ins": {layer: None}}
    with pytest.raises(CheckpointError, match=rf"'{layer}' is no layer that can hold stand-ins"):
        hp.apply_plan(MODEL, Plan(**stand_in))
