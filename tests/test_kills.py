"""A run killed at random moments of its stages ends as one that was not; a flipped bit is noticed and redone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_kills_change_nothing_and_damage_is_noticed(tmp_path):
    for package in ("onnx", "torchao"):
        pytest.importorskip(package, reason="the run ends in INT8")
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, script, tmp_path, "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["killed"].values()) == {2}
    assert all(found["same"].values()), found
    assert len(found["noticed"]) == 5
    assert all(found["noticed"].values()), found
