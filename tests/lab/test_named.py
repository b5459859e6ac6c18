"""A model by its name becomes smaller, and the printed lines read it back."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, CheckpointError
from hessprune.lab.models import build_model
from hessprune.lab.named import NamedModel, budget_of, prune_named, shape_of
from tests import huggingface

SOURCE = """from layers import width
from torch import nn


def make(num_classes=10, in_channels=1):
    body = [nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(width, num_classes))
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.py").write_text(SOURCE)
    (tmp_path / "nets" / "layers.py").write_text("width = 24\n")  # a neighbour, found as `python net.py` finds it
    return "nets/net.py:make"


def test_a_factory_in_a_file_is_pruned_and_read_back_by_the_printed_lines(file):
    torch.manual_seed(0)
    torch.save(build_model(file, num_classes=10, in_channels=1).state_dict(), "w.pt")
    model = NamedModel(name=file, weights=Path("w.pt"))
    found = prune_named(model, budget="macs=0.5", calibration="digits", samples=64)
    assert found.folder == Path("out/nets-net.py-make")
    assert {path.name for path in found.folder.iterdir()} == {"model.safetensors", "plan.json"}
    assert found.result.cost_after.macs <= 0.5 * found.result.cost_before.macs
    namespace: dict = {}
    exec(found.load, namespace)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(namespace["model"](x), found.result.model(x))
    assert found.accuracy is not None
    assert found.accuracy[2] == 134  # a tenth of the training images
    assert not any("random" in note for note in found.notes)  # a file may load weights itself


def test_json_holds_costs_widths_and_the_way_back(file):
    found = prune_named(
        NamedModel(name=file), budget="params=60%", calibration="digits", method="magnitude", samples=32
    )
    document = json.loads(json.dumps(found.to_json()))
    assert document["units"]["0"][0] == 24 > document["units"]["0"][1]
    assert document["params"][1] <= 0.6 * document["params"][0]
    assert document["accuracy"]["num_samples"] == 134
    assert (document["model"], document["budget"], document["method"]) == (file, "params=60%", "magnitude")


def test_widths_can_be_rounded_and_layers_kept(tmp_path):
    ranking = hp.Ranking(round_to=8, ignore=("layer1.*",))
    model = NamedModel(name="digits-resnet")
    found = prune_named(model, tmp_path, budget="macs=0.7", calibration="digits", ranking=ranking, samples=32)
    units = found.to_json()["units"]
    assert not any(name.startswith("layer1") for name in units)
    assert all(kept % 8 == 0 for _, kept in units.values())
    assert "drawn at random" in found.notes[-1]


def test_without_data_only_methods_that_read_weights_alone_may_decide(tmp_path):
    model = NamedModel(name="digits-resnet", shape=(1, 8, 8))
    found = prune_named(model, tmp_path, budget="macs=0.5", method="magnitude")
    assert found.accuracy is None
    assert "without data" in found.notes[0]
    with pytest.raises(ArgumentError, match=r"`calibration` must be given for method 'joint'.*one of .*magnitude"):
        prune_named(model, tmp_path, budget="macs=0.5")
    with pytest.raises(ArgumentError, match="Write --shape 3,32,32"):
        prune_named(NamedModel(name="digits-resnet"), tmp_path, budget="macs=0.5", method="magnitude")


def test_a_model_of_transformers_comes_with_weights_and_tokenizer(tmp_path):
    huggingface.package("transformers")
    folder = huggingface.write_model(tmp_path / "bert")
    huggingface.write_tokenizer(folder)
    sentences = huggingface.write_sentences(tmp_path / "data")
    out = tmp_path / "out"
    found = prune_named(
        NamedModel(name=f"hf:{folder}"), out, budget="macs=0.6", calibration=f"tsv:{sentences}", samples=16
    )
    namespace: dict = {}
    exec(found.load, namespace)
    assert isinstance(namespace["model"], nn.Module)
    assert "build_model" not in found.load
    assert found.notes == ()


def test_weights_that_do_not_fit_are_named(file):
    torch.save({"x": torch.zeros(2)}, "w.pt")
    with pytest.raises(CheckpointError, match="must fit"):
        prune_named(NamedModel(name=file, weights=Path("w.pt")), budget="macs=0.5", calibration="digits")


@pytest.mark.parametrize("text", ["macs", "macs=", "macs=half", "speed=2", "=0.5"])
def test_a_budget_is_a_quantity_and_a_value(text):
    with pytest.raises(ArgumentError, match=r"`budget` must be QUANTITY=VALUE .* Write macs=0.5"):
        budget_of(text)


def test_budgets_and_shapes_are_read():
    assert budget_of("units=0.25") == hp.Budget(units=0.25)
    assert budget_of("latency_ms=3") == hp.Budget(latency_ms=3.0)
    assert budget_of("kv_cache=50%") == hp.Budget(kv_cache="50%")
    assert shape_of("3, 32,32") == (3, 32, 32)
    assert shape_of(None) is None
    with pytest.raises(ArgumentError, match="`shape` must be positive integers"):
        shape_of("3x32")
