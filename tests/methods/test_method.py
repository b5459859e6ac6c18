"""A method of one's own: one file, known by value and by name."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import hessprune as hp
from hessprune.methods.method import METHODS, register
from hessprune.methods.text import as_method
from tests.cases import Residual, image, make

FILE = '''
"""The largest absolute weight of a unit."""

from dataclasses import dataclass
from typing import Literal

import torch

from hessprune.methods.method import Method, Scores, Scoring, register
from hessprune.methods.slices import weight_rows
from hessprune.structure.groups import producers


@register
@dataclass(frozen=True, kw_only=True, slots=True)
class Largest(Method):
    """`s_u = max |w_u|^p` over the weights that emit the unit."""

    name = "largest"
    power: float = 1.0
    mode: Literal["all", "first"] = "all"

    def score(self, scoring: Scoring) -> Scores:
        values = {}
        for group in scoring.groups:
            rows = torch.cat([weight_rows(scoring.model, piece) for piece in producers(group)], 1)
            values[group.name] = rows.abs().amax(1) ** self.power
        return Scores(values=values, facts={"power": self.power})
'''


@pytest.fixture
def largest(tmp_path: Path):
    (tmp_path / "largest.py").write_text(FILE)
    spec = importlib.util.spec_from_file_location("largest", tmp_path / "largest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["largest"] = module
    spec.loader.exec_module(module)
    yield module.Largest
    del METHODS["largest"], sys.modules["largest"]


def test_one_file_adds_a_method(largest) -> None:
    model, x = make(Residual), image(batch=6)
    batches = [(x, torch.arange(6) % 4)]
    value = largest(power=2.0)
    assert as_method("largest(power=2)") == value
    by_value = hp.prune(model, x[:1], batches, budget=hp.Budget(macs=0.6), method=value)
    by_name = hp.prune(model, x[:1], batches, budget=hp.Budget(macs=0.6), method="largest(power=2)")
    assert by_value.plan.removed == by_name.plan.removed
    assert by_value.plan.provenance["options"] == "largest(power=2.0)"
    assert by_value.plan.provenance["power"] == 2.0
    with pytest.raises(hp.errors.ArgumentError, match="`mode` must be one of 'all', 'first'"):
        largest(mode="last")


def test_two_methods_cannot_share_a_name() -> None:
    class Other(hp.Magnitude):
        name = "hap"

    with pytest.raises(hp.errors.ArgumentError, match="`name` of a method must be new, got 'hap', which HAP has"):
        register(Other)
