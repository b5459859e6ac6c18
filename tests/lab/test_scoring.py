import json

import pytest

from hessprune.errors import ArgumentError
from hessprune.lab.recipe import parse_recipe
from hessprune.lab.scoring import measure_saliency

RECIPE = parse_recipe({
    "threads": 1,
    "data": {"calibration_size": 16},
    "model": {"pretrain": {"epochs": 0}},
    "prune": {"budget": {"macs": 0.5}, "method": "magnitude"},
})


def test_measured_once_and_then_read(tmp_path, monkeypatch):
    method = "hap(estimator=rademacher,num_probes=2)"
    found = measure_saliency(RECIPE, tmp_path, method=method)
    assert found.method == method
    assert (found.provenance["estimator"], found.provenance["num_samples"]) == ("rademacher", 16)
    assert [len(group.values) for group in found.groups] == [16, 16, 32, 32, 64, 64]
    assert all(len(group.standard_error) == len(group.values) for group in found.groups)
    monkeypatch.setattr("hessprune.pruning.prune.saliency", None)
    assert measure_saliency(RECIPE, tmp_path, method=method) == found
    assert json.loads((tmp_path / "saliency.json").read_text("utf-8")) == json.loads(json.dumps(found.to_json()))


def test_the_recipe_decides_by_default_and_layers_can_be_left_out(tmp_path):
    found = measure_saliency(RECIPE, tmp_path, ignore=("layer1.*",))
    assert found.method == "magnitude"
    assert not any(group.group.startswith("layer1") for group in found.groups)
    with pytest.raises(ArgumentError, match=r"`method` must be one of .*got 'happ'"):
        measure_saliency(RECIPE, tmp_path, method="happ")
