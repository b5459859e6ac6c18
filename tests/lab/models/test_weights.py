"""Checkpoints load under wrappers' prefixes and renamed classifiers, entirely or not at all."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hessprune.errors import CheckpointError
from hessprune.lab.models import build_model, load_weights

SHARED = Path(__file__).parents[4] / "shared" / "data"


def fresh(seed: int = 0, num_classes: int = 10) -> torch.nn.Module:
    return build_model("digits-resnet", num_classes=num_classes, seed=seed)


def state(**changes: str) -> dict[str, torch.Tensor]:
    """The state of another model, its keys rewritten: `old="new"` replaces a layer's name."""
    result = {key: value.clone() for key, value in fresh(seed=1).state_dict().items()}
    for old, new in changes.items():
        result = {re.sub(rf"^{old}\b", new, key): value for key, value in result.items()}
    return result


def assert_loaded(path: Path) -> None:
    model = fresh()
    load_weights(model, path)
    for key, value in fresh(seed=1).state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_safetensors(tmp_path):
    save_file(state(), tmp_path / "w.safetensors")
    assert_loaded(tmp_path / "w.safetensors")


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model", "net"])
def test_nested_torch_checkpoint(tmp_path, nest):
    torch.save({"epoch": 3, "best": torch.tensor(0.9), nest: state()}, tmp_path / "w.th")
    assert_loaded(tmp_path / "w.th")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "_orig_mod.module.", "module.model."])
def test_prefixes(tmp_path, prefix):
    torch.save({prefix + key: value for key, value in state().items()}, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt")


def test_a_prefix_that_the_model_has_itself_stays(tmp_path):
    model, other = (
        torch.nn.ModuleDict({"model": torch.nn.Sequential(*map(torch.nn.Linear, (2, 2), (2, 2)))}) for _ in "ab"
    )
    torch.save(other.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_renamed_classifier(tmp_path):
    torch.save(state(linear="head.fc"), tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt")


def test_checkpoint_without_batch_counters(tmp_path):
    torch.save({key: value for key, value in state().items() if "num_batches" not in key}, tmp_path / "w.pt")
    assert_loaded(tmp_path / "w.pt")


def test_half_precision_is_cast(tmp_path):
    torch.save({key: value.half() for key, value in state().items()}, tmp_path / "w.pt")
    model = fresh()
    load_weights(model, tmp_path / "w.pt")
    torch.testing.assert_close(model.linear.weight, fresh(seed=1).linear.weight, rtol=1e-3, atol=1e-4)
    assert model.linear.weight.dtype == torch.float32


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path):
    wrong = state(bn1="norm", conv1="stem")
    wrong["linear.weight"] = torch.zeros(7, 64)
    torch.save(wrong, tmp_path / "w.pt")
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "w.pt")
    message = str(caught.value)
    assert "must fit ResNet" in message
    assert "missing (5): 'conv1.weight', 'bn1.weight'" in message
    assert "unexpected (6): 'stem.weight'" in message
    assert "wrong shape (1): 'linear.weight' (7, 64) instead of (10, 64)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_long_lists_are_cut(tmp_path):
    torch.save({"linear.weight": torch.zeros(10, 64)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): .* and \d+ more\. Build"):
        load_weights(fresh(), tmp_path / "w.pt")


def test_a_rename_that_is_not_unique_is_refused(tmp_path):
    twice = state(linear="head") | {"aux.weight": torch.zeros(10, 64), "aux.bias": torch.zeros(10)}
    torch.save(twice, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"unexpected \(4\)"):
        load_weights(fresh(), tmp_path / "w.pt")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.th' must be an existing file"):
        load_weights(fresh(), tmp_path / "absent.th")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_truncated_file(tmp_path, suffix, kept):
    path = tmp_path / f"w.{suffix}"
    save_file(state(), path) if suffix == "safetensors" else torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(fresh(), path)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_malicious_pickle_runs_nothing(tmp_path):
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_weights(fresh(), tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"epoch": 1}}, {}])
def test_content_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="must hold a dict of tensors"):
        load_weights(fresh(), tmp_path / "w.pt")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the pretrained weights in ../shared/data")
def test_pretrained_resnet20_reads_the_published_accuracy():
    model = build_model("resnet20", num_classes=10)
    load_weights(model, next((SHARED / "weights").glob("resnet20-*.th")))
    with np.load(SHARED / "cifar10_raw_subset.npz") as archive:
        images = torch.from_numpy(archive["test_images"]).permute(0, 3, 1, 2) / 255
        labels = torch.from_numpy(archive["test_labels"])
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        predicted = model.eval()((images - mean) / std).argmax(1)
    assert float((predicted == labels).float().mean()) >= 0.91


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the pretrained weights in ../shared/data")
def test_weights_of_another_depth_say_what_does_not_fit():
    with pytest.raises(CheckpointError, match=r"unexpected \(\d+\): 'layer1\.3\.conv1\.weight'"):
        load_weights(build_model("resnet20", num_classes=10), next((SHARED / "weights").glob("resnet32-*.th")))


def loop() -> dict:
    content = {}
    content["state_dict"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (loop(), "must hold a dict of tensors"),
        ({1: torch.zeros(2)}, "must hold plain tensors by name, got the key '1'"),
        (state() | {5: torch.zeros(2)}, "got the key '5'"),
        (state() | {"conv1.weight": torch.eye(3).to_sparse()}, "got sparse 'conv1.weight'"),
        (state() | {"a": torch.zeros(2, device="meta")}, "got empty 'a'"),
        (state() | {"bn1.weight": fresh().bn1.weight.detach().to(torch.complex64)}, r"wrong dtype \(1\): 'bn1.weight'"),
        (state() | {"bn1.weight": fresh().bn1.weight.detach().to(torch.int8)}, r"wrong dtype \(1\): 'bn1.weight'"),
        (state() | {"x" * 10_000: torch.zeros(2)}, r"unexpected \(1\): 'xxx[^ ]*…"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    model, before = fresh(), fresh().state_dict()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, tmp_path / "w.pt")
    assert len(str(caught.value)) < 700
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
