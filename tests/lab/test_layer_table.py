"""The table of layers adds up to the cost of the model, and says what decided each width."""

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
