"""Models of other packages by name: built when asked for, and one clear line where that cannot be."""

import json
import re
import sys

import pytest
import torch

from hessprune.errors import ArgumentError, CheckpointError, MissingDependencyError
from hessprune.lab.models import build_model
from hessprune.lab.models.zoos import ZooName, example_of
from tests.huggingface import config, package, write_model


def test_a_folder_gives_its_weights_and_a_classifier_drawn_by_the_seed(tmp_path):
    folder = write_model(tmp_path / "bert")
    dense = package("transformers").BertModel.from_pretrained(folder)
    one, same, other = (build_model(f"hf:{folder}", num_classes=3, seed=seed) for seed in (1, 1, 2))
    assert type(one).__name__ == "BertForSequenceClassification"
    assert one.training
    assert one.classifier.out_features == 3
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    body = dict(one.bert.named_parameters())
    assert all(torch.equal(value, body[name]) for name, value in dense.named_parameters())


def test_a_relative_folder_lies_below_the_root_and_the_config_names_the_class(tmp_path):
    write_model(tmp_path / "bert")
    model = build_model("hf:bert", num_classes=None, root=tmp_path)
    assert type(model).__name__ == "BertModel"
    example = example_of(model, None)
    assert example["input_ids"].shape == (1, 40)
    assert model(**example).last_hidden_state.shape == (1, 40, 16)
    assert example_of(model, (7,))["attention_mask"].shape == (1, 7)


def test_a_classifier_keeps_its_own_head(tmp_path):
    torch.manual_seed(0)
    net = package("transformers").BertForSequenceClassification(config(num_labels=5))
    net.save_pretrained(tmp_path)
    again = build_model(f"hf:{tmp_path}", num_classes=5)
    assert torch.equal(again.classifier.weight, net.classifier.weight)
    assert build_model(f"hf:{tmp_path}", num_classes=None).classifier.out_features == 5


def test_a_vision_folder_gets_a_head_for_images(tmp_path):
    transformers = package("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=16, patch_size=8))
    vit.save_pretrained(tmp_path)
    model = build_model(f"hf:{tmp_path}", num_classes=4).eval()
    assert type(model).__name__ == "ViTForImageClassification"
    assert model(example_of(model, None)).logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("zoo", "name", "channels"), [("timm", "resnet10t", 1), ("torchvision", "shufflenet_v2_x0_5", 3)]
)
def test_zoos_build_with_fresh_weights(zoo, name, channels):
    package(zoo)
    one, same = (build_model(f"{zoo}:{name}", num_classes=4, in_channels=channels, seed=1).eval() for _ in range(2))
    assert one(torch.zeros(1, channels, 64, 64)).shape == (1, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert example_of(one, None).shape == (1, 3, *((176, 176) if zoo == "timm" else (224, 224)))
    with pytest.raises(ArgumentError, match=f"`name` must be a model of {zoo}, got .*Did you mean '{name}'"):
        build_model(f"{zoo}:{name}x", num_classes=4)


def test_names_of_the_users_own_modules_are_left_alone():
    assert ZooName.read("torchvision.models:resnet18") is None
    assert ZooName.read("resnet56") is None
    assert ZooName.read("timm:resnet10t").key() == ["timm", "resnet10t"]


def test_the_key_of_a_folder_is_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    before = ZooName.read("hf:a").below(tmp_path).key()
    assert before == ZooName.read(f"hf:{tmp_path / 'a'}").below(tmp_path / "elsewhere").key()
    (tmp_path / "a" / "model.safetensors").write_bytes(b"1")
    assert ZooName.read("hf:a").below(tmp_path).key() != before


def test_folders_that_hold_no_model_are_one_clear_error(tmp_path):
    package("transformers")
    with pytest.raises(ArgumentError, match=r"must be hf:FOLDER with a config.json .*nothing is downloaded"):
        build_model("hf:bert-base-uncased", num_classes=2)
    folder = write_model(tmp_path / "bert")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damage in (content[:100], None):
        weights.unlink()
        if damage is not None:
            weights.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"must hold a model of transformers, got .*save_pretrained"):
            build_model(f"hf:{folder}", num_classes=2)
    weights.write_bytes(content)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"must fit its config.json, got no fitting bert.encoder.layer.2"):
        build_model(f"hf:{folder}", num_classes=2)
    (folder / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(CheckpointError, match="must hold a model of transformers, got ValueError"):
        build_model(f"hf:{folder}", num_classes=2)


@pytest.mark.parametrize(("zoo", "name"), [("timm", "timm:resnet10t"), ("torchvision", "torchvision:resnet18")])
def test_a_missing_package_is_one_clear_error(zoo, name, monkeypatch):
    monkeypatch.setitem(sys.modules, zoo, None)
    with pytest.raises(MissingDependencyError, match=rf"`{zoo}` is needed here .*Run: pip install .*{zoo}"):
        build_model(name, num_classes=2)


def test_a_class_that_cannot_be_imported_is_one_clear_error(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "transformers", Lazy(package("transformers")))
    with pytest.raises(
        MissingDependencyError, match=r"torchvision is of another build than torch \(RuntimeError: opera"
    ):
        build_model(f"hf:{folder}", num_classes=None)


class Lazy:
    """transformers, in which a class cannot be imported."""

    def __init__(self, whole) -> None:
        self.whole = whole

    def __getattr__(self, name: str):
        if name == "BertModel":
            raise ModuleNotFoundError("Could not import module") from RuntimeError(
                "operator torchvision::nms is absent"
            )
        return getattr(self.whole, name)


def test_a_model_without_a_head_that_classifies_is_refused(tmp_path):
    transformers = package("transformers")
    transformers.EncodecConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArgumentError, match=re.escape("a model of type 'encodec' must have a class that classifies")):
        build_model(f"hf:{tmp_path}", num_classes=2)
