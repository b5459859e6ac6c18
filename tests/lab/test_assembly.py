"""What a reader has to know to read the numbers."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from hessprune.lab.assembly import _busy_note, _fp32_notes


@pytest.mark.parametrize(("p90", "number"), [(1.9, 0), (2.1, 1)])
def test_times_that_are_far_apart_are_said_aloud(p90, number):
    latency = {"dense": {"p10_ms": 1.0, "p90_ms": 1.1}, "int8": {"p10_ms": 1.0, "p90_ms": p90}}
    assert len([*_busy_note(latency)]) == number


def test_layers_that_stay_in_fp32_for_one_reason_are_named_together(tmp_path) -> None:
    left = {f"block.{number}.norm": "no integer kernel for layer_norm" for number in range(5)} | {"head": "kept"}
    (tmp_path / "quantize.json").write_text(json.dumps({"fp32_layers": left}), "utf-8")
    stage: Any = SimpleNamespace(file=lambda name: tmp_path / name)
    (note,) = _fp32_notes({"int8": SimpleNamespace(stage=stage)})  # type: ignore[dict-item]
    first = "block.0.norm, block.1.norm, block.2.norm and 2 more (no integer kernel for layer_norm)"
    assert note == f"Layers of it left in FP32: {first}; head (kept)."
