"""What a forward takes from the user's files counts; what it changes there does not."""

import importlib
import sys

import pytest
import torch

from hessprune.foundation.identity import modules_sha256

SOURCE = """
import functools
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

TABLE = {"gain": 1.0, "list": [1, 2]}
ARRAY = np.array([1.0, 2.0])
TENSOR = torch.tensor([1.0, 2.0])
SELF = [1]
SELF.append(SELF)


def helped(x, k=2.0):
    return x * k


halved = functools.partial(helped, k=0.5)
ACTS = {"up": lambda x: x + 1}


@functools.lru_cache
def steps(n):
    return torch.arange(n) + 10


@dataclass
class Config:
    scale: float = 1.5


@dataclass(slots=True)
class Slotted:
    scale: float = 1.0


SLOTTED = Slotted(25.0)
_PRIVATE = (28.0,)
KINDS = {"act": nn.ReLU}
PARTS, RANGE, EXACT = deque([29, 30]), range(31), Decimal("0.32")
SPACE = SimpleNamespace(k=33)
CONFIG = Config()


class Mode(Enum):
    A = 1
    B = 2


MODE = Mode.A


class Scaler:
    def __init__(self, k):
        self.k, self.calls = k, 0

    def __call__(self, x):
        self.calls += 1
        return x * self.k


SCALER = Scaler(20)
CACHE, LOG, CALLS = {}, [], 0


class Mixin:
    POWER = 11

    @property
    def gain(self):
        return 12.0

    @staticmethod
    def shifted(x):
        return x + 13

    @classmethod
    def powered(cls, x):
        return x * cls.POWER


class Net(Mixin, nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.own, self.nested, self.memo, self.calls = Config(1.25), {"a": [{"b": 14}]}, {}, 0
        self.set_offset(24)
        self._factor, self.plain, self.act = 34.0, torch.tensor([35.0]), KINDS["act"]
        self.register_buffer("hidden", torch.tensor([36.0]), persistent=False)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self._last = None

    def set_own(self, scale):
        self.own = Config(scale)

    def set_offset(self, offset):
        self.offset = offset

    @functools.cached_property
    def lazy(self):
        return 37.0

    @functools.lru_cache(maxsize=1)
    def remembered(self, n):
        return n + 38

    def forward(self, x):
        global CALLS
        self.seen += len(x)
        self._last = x
        CALLS += 1
        self.calls += 1
        self.memo[len(x)] = x
        CACHE[len(x)] = x
        LOG.append(len(x))
        x = self.linear(x) * TABLE["gain"] + float(ARRAY[0]) + TENSOR + SELF[0]
        x = ACTS["up"](halved(helped(x))) * self.gain * CONFIG.scale * self.own.scale
        if MODE is Mode.A:
            x = self.powered(self.shifted(x))

        def inner(y):
            return y - 15

        scale = x + SLOTTED.scale + MODE.value
        scale[0] = 0
        scale = self.act()(scale) + _PRIVATE[0] * self._factor * self.plain * self.hidden * self.lazy
        scale = scale + sum(PARTS) + len(RANGE) + float(EXACT) + SPACE.k + self.remembered(1)
        return inner(SCALER(x) + steps(2)) * self.nested["a"][0]["b"] + self.offset + scale
"""
CHANGES = (
    ('"gain": 1.0', '"gain": 1.5'),
    ("[1, 2]}", "[1, 3]}"),
    ("np.array([1.0", "np.array([9.0"),
    ("torch.tensor([1.0", "torch.tensor([9.0"),
    ("return x * k", "return x / k"),
    ("k=2.0", "k=3.0"),
    ("k=0.5", "k=0.25"),
    ("lambda x: x + 1", "lambda x: x + 2"),
    ("+ 10", "+ 16"),
    ("scale: float = 1.5", "scale: float = 2.5"),
    ("MODE = Mode.A", "MODE = Mode.B"),
    ("Scaler(20)", "Scaler(21)"),
    ("POWER = 11", "POWER = 17"),
    ("return 12.0", "return 18.0"),
    ("x + 13", "x + 19"),
    ("x * cls.POWER", "x - cls.POWER"),
    ("Config(1.25)", "Config(1.75)"),
    ('"b": 14', '"b": 22'),
    ("y - 15", "y - 23"),
    ("set_offset(24)", "set_offset(26)"),
    ("Slotted(25.0)", "Slotted(27.0)"),
    ("A = 1\n", "A = 3\n"),
    ("(28.0,)", "(39.0,)"),
    ("nn.ReLU}", "nn.GELU}"),
    ("deque([29", "deque([39"),
    ("range(31)", "range(39)"),
    ("0.32", "0.39"),
    ("k=33", "k=39"),
    ("34.0", "39.0"),
    ("[35.0]", "[39.0]"),
    ("[36.0]", "[39.0]"),
    ("37.0", "39.0"),
    ("n + 38", "n + 39"),
)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Return a function that makes the network of some source, as another process would."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def build(source):
        (tmp_path / "reaching_net.py").write_text(source)
        monkeypatch.delitem(sys.modules, "reaching_net", raising=False)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        return importlib.import_module("reaching_net").Net()

    return build


@pytest.mark.parametrize(("old", "new"), CHANGES, ids=[new for _, new in CHANGES])
def test_whatever_a_forward_reads_in_a_file_counts(built, old, new):
    assert SOURCE.count(old) == 1
    assert modules_sha256(built(SOURCE)) != modules_sha256(built(SOURCE.replace(old, new)))


def test_what_a_forward_does_not_read_does_not_count(built):
    more = "\n# a comment\nUNREAD = 1\n\n\ndef unused():\n    return 2\n"
    assert modules_sha256(built(SOURCE)) == modules_sha256(built(SOURCE + more))


def test_counts_and_caches_do_not_count(built):
    net = built(SOURCE)
    before = modules_sha256(net)
    for _ in range(2):
        net(torch.zeros(3, 2))
    assert net.calls == 2
    assert modules_sha256(net) == before


def test_what_another_method_sets_is_a_setting(built):
    net = built(SOURCE)
    before = modules_sha256(net)
    net.set_own(3.0)
    assert modules_sha256(net) != before
