"""The wheel works by itself, beside nothing but its core dependencies; these are linked, so no index is asked."""

import ast
import importlib.metadata as metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
USE = """
import torch, hessprune as hp
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
result = hp.prune(net, torch.zeros(1, 4), [torch.randn(16, 4)], budget=hp.Budget(macs=0.5), method="magnitude")
result.save("smaller")
print(hp.__file__, result.model[0].out_features)
"""


def closure(names: list[str]) -> set[str]:
    """Return distributions and all that they need, as far as they are installed."""
    found: set[str] = set()
    while names:
        name = re.split(r"[^\w.-]", names.pop(), maxsplit=1)[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # a platform's own
            continue
        found.add(name)
        names += [need for need in needs if "extra ==" not in need]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder with the built wheel, unpacked, and links to the core dependencies: no index is asked."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert not done.returncode, done.stderr
    site = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    for name in closure(list(PROJECT["dependencies"])):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in {"..", "__pycache__"} and not (site / top).exists():
                (site / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1].resolve() / top)
    return folder


def finished(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the site packages of this environment."""
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    command = [sys.executable, "-S", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def run(folder: Path, *words: str) -> str:
    done = finished(folder, *words)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_core_runs_the_command_line(bare):
    assert run(bare, "-m", "hessprune", "--version").startswith("hessprune ")
    assert "bottlenecks" in run(bare, "-m", "hessprune", "--help")
    words = ["prune", "digits-resnet", "--calibration", "digits", "--samples", "32", "--method", "magnitude", "--quiet"]
    assert "model = hp.load(" in run(bare, "-m", "hessprune", *words)


@pytest.mark.slow
def test_the_core_prunes(bare):
    path, units = run(bare, "-c", USE).split()
    assert Path(path).is_relative_to(bare)
    assert units == "4"


@pytest.mark.slow
def test_what_the_demo_needs_more_is_named_with_one_command(bare):
    done = finished(bare, "-m", "hessprune", "demo")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*Run: pip install 'hessprune\[[a-z,]+\]'\n", done.stderr), done.stderr


def test_versions_agree():
    init = ast.parse((ROOT / "src" / "hessprune" / "__init__.py").read_text("utf-8"))
    values = {node.targets[0].id: node.value for node in init.body if isinstance(node, ast.Assign)}
    version = values["__version__"].value
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert PROJECT["dynamic"] == ["version"]
