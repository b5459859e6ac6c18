"""The examples run as their users run them: as scripts, in a fresh process, with warnings as errors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


def printed(script: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", EXAMPLES / script]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(text: str) -> dict[str, float]:
    """Read lines such as `fine-tuned  98.4% on test, …`."""
    found = re.findall(r"^(\S.*?) +(?:validation +)?([\d.]+)%", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_own_model_keeps_its_accuracy_at_half_the_macs(tmp_path):
    text = printed("own_model.py", tmp_path)
    accuracy = accuracies(text)
    assert accuracy["dense"] > 95
    assert accuracy["fine-tuned"] >= accuracy["dense"] - 2
    assert [float(kept) <= 50 for kept in re.findall(r": ([\d.]+)% of macs kept", text)] == [True]
    assert "bit for bit the same: True" in text
    assert (tmp_path / "out" / "own_model" / "model.onnx").is_file()


def test_inspect_groups_shows_groups_and_reasons(tmp_path):
    text = printed("inspect_groups.py", tmp_path)
    assert re.findall(r"^(\w+): \d+ channels", text, re.MULTILINE) == ["stem", "inner", "side", "top"]
    assert "frozen: it is split into parts of fixed, unequal size" in text
    assert text.endswith("with `ignore=['inner']`: stem, side, top\n")


def test_custom_criterion_stands_beside_the_baselines(tmp_path):
    accuracy = accuracies(printed("custom_criterion.py", tmp_path))
    assert list(accuracy) == ["dense", "mean activation", "magnitude", "random"]
    assert accuracy["dense"] > 95
    assert accuracy["mean activation"] > 50


def test_every_example_has_its_test():
    named = re.findall(r'printed\("(\w+\.py)"', Path(__file__).read_text("utf-8"))
    assert sorted(named) == sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_iterative_joins_its_plans(tmp_path):
    text = printed("iterative.py", tmp_path)
    kept = [float(share) for share in re.findall(r"^ *([\d.]+)% MACs", text, re.MULTILINE)]
    assert len(kept) == 2
    assert kept[0] > kept[1]
    assert 45 < kept[1] <= 50.5
    assert "bit for bit the same: True" in text
