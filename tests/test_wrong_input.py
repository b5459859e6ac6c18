"""Wrong input, through the command line: exit code 2 and one line that names the thing and the remedy."""

import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from hessprune.lab.cli import app
from tests import nets

COMMANDS = {"run": [], "saliency": [], "compare": ["--methods=hap", "--budgets=0.5", "--seeds=0"]}
RECIPE = {
    "threads": 1,
    "data": {"source": "npz", "root": "fine.npz", "validation_size": 10, "calibration_size": 12},
    "model": {"name": "tests.nets:Fine", "weights": "Fine.safetensors"},
    "prune": {"budget": {"macs": 0.5}},
    "finetune": {"epochs": 1},
    "export": {"onnx": False},
    "report": {"curve": [], "baselines": False, "latency_repeats": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("wrong")
    write_images(root / "fine.npz")
    write_images(root / "empty.npz", number=0)
    write_images(root / "negative.npz", label=-3)
    for name in ("Fine", "Overflowing", "Branching", "ThreeChannels", "FewClasses", "OneLayer"):
        torch.manual_seed(0)
        save_file(getattr(nets, name)().state_dict(), root / f"{name}.safetensors")
    broken = {key: value * torch.nan for key, value in nets.Fine().state_dict().items()}
    save_file(broken, root / "nan.safetensors")
    torch.save(nets.Fine().state_dict(), root / "whole.pt")
    (root / "cut.pt").write_bytes((root / "whole.pt").read_bytes()[:700])
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


def write_images(path, number=40, label=None):
    images = np.random.default_rng(0).integers(0, 255, (number, 8, 8)).astype(np.uint8)
    labels = np.arange(number) % 10 if label is None else np.full(number, label)
    parts = {
        f"{split}_{kind}": value
        for split in ("train", "test")
        for kind, value in (("images", images), ("labels", labels))
    }
    np.savez(path, **parts)


def network(name: str) -> list[str]:
    return [f"model.name=tests.nets:{name}", f"model.weights={name}.safetensors"]


EVERYWHERE = [
    (["data.root=empty.npz"], r"must hold at least 2 training images, got 0"),
    (["data.root=negative.npz"], r"labels in `negative train` must be in \[0, 1\).*got values from -3 to -3"),
    (["data.root=absent.npz"], r"got 'absent.npz'. Check the path"),
    (["data=[1]"], r"`data` must be a section of keys, got \[1\]"),
    (["data.sorce=npz"], r"unknown key `data.sorce`. Did you mean 'source'\?"),
    (["device=cuda"], r"`device` must be available, got 'cuda'"),
    (["prune.budget.macs=0"], r"kept share in \(0, 1\].*got 0"),
    (["prune.budget.macs=1.5"], r"above 1 must be a whole number, got 1.5"),
    (["prune.budget={macs: 0.5, params: 0.5}"], r"exactly one of .*got macs and params"),
    (["model.weights=absent.pt"], r"'absent.pt' must be an existing file"),
    (["model.weights=cut.pt"], r"'cut.pt' cannot be read .*truncated.*Copy it again"),
    (["model.weights=nan.safetensors"], r"weights must be finite, got NaN .*'first.weight'"),
    (["model.weights=FewClasses.safetensors"], r"'head.weight' \(3, 8\) instead of \(10, 8\)"),
    (network("FewClasses"), r"labels in `batches` must be in \[0, 3\), .*give the model more outputs"),
    (network("ThreeChannels"), r"`example_inputs` must fit the model's forward, got shapes \(1, 1, 8, 8\)"),
    (network("Overflowing"), r"must be finite, got NaN or infinity"),
    (network("Branching"), r"must be capturable by torch.export, but Branching.forward \(line \d+ of nets.py\)"),
    (network("OneLayer"), r"must have channels that can be removed, found none: .*at least one hidden layer"),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="one case is the absence of CUDA")
@pytest.mark.parametrize(("changes", "message"), EVERYWHERE, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_one_line_and_exit_code_2(command, changes, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    changes = [f"--set={change}" for change in changes]
    found = CliRunner().invoke(app, [command, "recipe.yaml", f"--out={tmp_path}", *COMMANDS[command], *changes])
    assert found.exit_code == 2, found.output
    assert re.search(message, found.stderr), found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--set=prune.budget.macs=0.001"], r"must be reachable.*Ask for at least macs=0\.\d"),
        (["run", "--set=prune.ranking.ignore=[xyz]"], r"`ignore` must name modules of the model, got 'xyz'"),
        (["run", "--set=finetune.lr=1.0e+30"], r"error: .*must be finite.*lower `lr`"),
        (["compare", "--budgets=0.001", "--methods=hap", "--seeds=0"], r"`budgets` must be reachable by one method"),
        (["compare", "--ignore=xyz"], r"`ignore` must name modules of the model, got 'xyz'"),
        (["saliency", "--method=hap(estimator=hutchison)"], r"got 'hutchison'. Did you mean 'hutchinson'\?"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_only_one_command_is_asked(words, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    command, *options = words
    found = CliRunner().invoke(app, [command, "recipe.yaml", f"--out={tmp_path}", *options])
    assert found.exit_code == 2, found.output
    assert re.search(message, found.stderr), found.stderr
    assert "Traceback" not in found.output
