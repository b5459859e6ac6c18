"""The table of layers adds up to the cost of the model, and says what decided each width."""

import math

import pytest
import torch

import hessprune as hp
from hessprune.lab.assembly import layer_widths
from hessprune.lab.layer_table import layer_table, reasons_of
from hessprune.lab.models import build_model

X = torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(0)
    dense = build_model("digits-resnet", num_classes=10, in_channels=1).eval()
    ranking = hp.Ranking(round_to=4, ignore=("layer1.0.conv1",))
    groups = hp.find_groups(dense, X, ranking.ignore)
    result = hp.prune(dense, X, [torch.randn(16, 1, 8, 8)], budget=hp.Budget(macs=0.5), method="hap", ranking=ranking)
    widths = layer_widths(result.plan, list(dense.state_dict()))
    reasons = reasons_of(dense, X, groups, result.plan, result.saliency, ranking=ranking, widths=widths)
    return result, layer_table(dense, result.model, X, widths=widths, reasons=reasons)


def test_macs_of_the_layers_are_those_of_the_model(table):
    result, rows = table
    for place, cost in enumerate((result.cost_before, result.cost_after)):
        assert sum(row.macs[place] for row in rows) == cost.macs


def test_widths_are_those_of_the_weights(table):
    result, rows = table
    state = result.model.state_dict()
    for row in rows:
        assert state[f"{row.name}.weight"].shape[0] == row.width[1], row.name
        assert row.params[1] <= row.params[0]


def test_reasons_name_saliency_rounding_and_what_is_frozen(table):
    reasons = {row.name: row.why for row in table[1]}
    assert reasons["linear"] == "whole because the model returns it"
    assert reasons["layer1.0.conv1"] == "whole because it is ignored on request"
    assert "× the typical saliency per MAC" in reasons["layer2.0.conv1"]
    assert "one width with" in reasons["conv1"]
    assert any("a multiple of 4" in why for why in reasons.values())


def test_a_layer_at_its_floor_is_said_to_be_there():
    dense = build_model("digits-resnet", num_classes=10, in_channels=1).eval()
    ranking = hp.Ranking(min_kept_fraction=0.3, min_kept_units=(("layer1.0.conv1", 5),))
    groups = hp.find_groups(dense, X)
    values = {group.name: torch.arange(1.0, group.num_units + 1) for group in groups}
    values["layer1.0.conv1"] = values["layer1.0.conv1"] * 1e-3
    plan = hp.make_plan(dense, groups, values, hp.Budget(macs=0.6), example_inputs=X, ranking=ranking)
    assert len(plan.kept["layer1.0.conv1"]) == 5
    widths = layer_widths(plan, list(dense.state_dict()))
    saliency = hp.Saliency(values, provenance={})
    reasons = reasons_of(dense, X, groups, plan, saliency, ranking=ranking, widths=widths)
    assert "at its floor" in reasons["layer1.0.conv1"]
    units = {group.name: group.num_units for group in groups}
    for width in widths:
        floor = 5 if width.group == "layer1.0.conv1" else math.ceil(0.3 * units[width.group])
        assert ("floor" in reasons[width.name]) == (len(plan.kept[width.group]) <= floor < units[width.group])
