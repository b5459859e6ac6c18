"""Hashes tell data, losses and models apart by what they compute, and nothing else."""

import importlib
from argparse import Namespace
from collections import deque
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.identity import architecture_sha256, content_sha256, loss_identity, modules_sha256

WEIGHT = 2.0
X = torch.arange(6.0).view(2, 3)


def scaled(out: Tensor, y: Tensor) -> Tensor:
    return WEIGHT * helper(out - y)


def helper(error: Tensor) -> Tensor:
    return error.square().mean()


class Loss(nn.Module):
    """A loss with a setting."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return (out - y).abs().pow(self.power).mean()


def closed(weight: Any) -> Any:
    return lambda out, y: (weight * (out - y)).square().mean()


PAIRS: list[tuple[Any, Any]] = [
    (X, X.double()), (X, X.view(3, 2)), (X, X + 1), ({"a": X, "b": -X}, {"a": -X, "b": X}), ([X, 1], [X, 2]),
    ((1, 2), [1, 2]), (np.arange(3), np.arange(3) + 1), ("a", b"a"), (1, True), ({1, 2}, {1, 3}),
    (deque([1]), deque([2])), (range(3), range(4)), (Decimal("0.1"), Decimal("0.2")), (Namespace(k=1), Namespace(k=2)),
    (closed(1.0), closed(2.0)),
    (closed(X), closed(X + 1)), (closed([1.0]), closed([2.0])), (Loss(1), Loss(2)), (partial(F.huber_loss, delta=1.0),
    partial(F.huber_loss, delta=2.0)), (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(3))),
    (lambda out, y: out - y, lambda out, y: out + y), (lambda out: out[:, :1], lambda out: out[:, 1:]),
    (lambda out, y=1: out, lambda out, y=2: out), (Loss(1).forward, Loss(2).forward),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_differs_has_another_hash(one: Any, other: Any) -> None:
    assert content_sha256(one) == content_sha256(one)
    assert content_sha256(one) != content_sha256(other)


def test_equal_values_have_equal_hashes_whoever_shares_them() -> None:
    batch = {"x": X}
    assert content_sha256([batch, batch]) == content_sha256([{"x": X.clone()}, {"x": X[:]}])
    assert content_sha256(closed(X)) == content_sha256(closed(X.clone()))
    assert content_sha256(Loss(2).train()) == content_sha256(Loss(2).eval())
    assert content_sha256(X.to_sparse()) == content_sha256(X)
    ring: list[Any] = []
    ring.append(ring)
    assert len(content_sha256(ring)) == 64


def test_what_a_function_takes_from_its_module_counts(monkeypatch) -> None:
    before = content_sha256(scaled)
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    assert content_sha256(scaled) != before
    monkeypatch.setitem(globals(), "WEIGHT", 2.0)
    assert content_sha256(scaled) == before
    monkeypatch.setitem(globals(), "helper", lambda error: error.abs().mean())
    assert content_sha256(scaled) != before


class Weights:
    """What a loss reads, and counts."""

    def __init__(self, error: float) -> None:
        self.error, self.calls = error, 0

    def set_error(self, error: float) -> None:
        self.error = error

    def applied(self, error: Tensor) -> Tensor:
        self.calls += 1
        return self.error * error * PENALTY["error"]


WEIGHTS, PENALTY = Weights(1.0), {"error": 1.0}


def weighted(out: Tensor, y: Tensor) -> Tensor:
    return WEIGHTS.applied((out - y).square().mean())


def test_objects_that_a_function_reads_count_but_not_what_they_count(monkeypatch) -> None:
    before = content_sha256(weighted)
    weighted(X, X + 1)
    assert WEIGHTS.calls
    assert content_sha256(weighted) == before
    WEIGHTS.set_error(2.0)
    other = content_sha256(weighted)
    monkeypatch.setitem(PENALTY, "error", 3.0)
    assert len({before, other, content_sha256(weighted)}) == 3
    WEIGHTS.set_error(1.0)


def test_losses_of_packages_are_known_by_name_and_others_by_code() -> None:
    assert loss_identity(F.mse_loss) == "mse_loss"
    names = {loss_identity(each) for each in (lambda o, _: o.mean(), lambda o, _: o.sum(), lambda o, _: o.max())}
    assert len(names) == 3
    assert all(name.startswith("<lambda> ") for name in names)
    assert loss_identity(nn.MSELoss()) == loss_identity(nn.MSELoss()) != loss_identity(nn.MSELoss(reduction="sum"))


class Own(nn.Module):
    """A module whose forward is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_functions_that_a_package_makes_are_known_by_what_they_hold(monkeypatch) -> None:
    one, other = closed(1.0), closed(2.0)
    monkeypatch.setattr(one, "__module__", "torch.nn.functional")
    monkeypatch.setattr(other, "__module__", "torch.nn.functional")
    assert loss_identity(one) != loss_identity(other)


def test_architectures_differ_by_class_setting_and_forward() -> None:
    other: Any = type("Own", (nn.Module,), {"forward": lambda _, x: x + 1, "__module__": __name__})
    layers = (nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.Dropout(0.1), nn.Dropout(0.2), Own(), other())
    hashes = {architecture_sha256(nn.Sequential(layer)) for layer in layers}
    assert len(hashes) == len(layers)
    assert architecture_sha256(nn.Linear(2, 2).train()) == architecture_sha256(nn.Linear(2, 2).eval())


class Attends(nn.Module):
    """Has a setting that no weight shows, and a helper beside its forward."""

    def __init__(self, scale: float, act=torch.relu) -> None:
        super().__init__()
        self.scale, self.act, self.cache = scale, act, torch.zeros(2)

    def forward(self, x):
        return self.helped(x)

    def helped(self, x):
        return self.act(self.scale * x)


def test_settings_and_functions_of_modules_count_but_not_mode_and_weights():
    one, same = Attends(1.0), Attends(1.0).eval()
    assert modules_sha256(one) == modules_sha256(same)
    assert modules_sha256(nn.Linear(2, 2)) == modules_sha256(nn.Linear(2, 2))
    others = [Attends(2.0), Attends(1.0, torch.tanh), Attends(1.0, lambda x: x), nn.Sequential(one)]
    assert len({modules_sha256(each) for each in (one, *others)}) == 5


EXPONENT = 1


def raised(x: Tensor) -> Tensor:
    return x**EXPONENT


class Reaching(nn.Module):
    """Takes a function from beside itself, which takes a constant, and counts its calls there."""

    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS = CALLS + 1
        return raised(x)


CALLS = 0


def test_functions_and_constants_that_a_forward_takes_from_files_count(monkeypatch):
    before = modules_sha256(Reaching())
    Reaching()(torch.zeros(1))
    assert modules_sha256(Reaching()) == before
    monkeypatch.setattr(f"{__name__}.EXPONENT", 3)
    other = modules_sha256(Reaching())
    monkeypatch.setattr(f"{__name__}.raised", lambda x: x + 1)
    assert len({before, other, modules_sha256(Reaching())}) == 3


def test_constants_of_another_file_of_the_user_count(tmp_path, monkeypatch):
    (tmp_path / "powers.py").write_text("POWER = 1\n")
    (tmp_path / "powered.py").write_text(
        "import powers\nfrom torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x ** powers.POWER\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    powered, powers = (importlib.import_module(name) for name in ("powered", "powers"))
    before = modules_sha256(powered.Net())
    monkeypatch.setattr(powers, "POWER", 3)
    assert modules_sha256(powered.Net()) != before


def test_constants_of_a_file_within_a_package_count(tmp_path, monkeypatch):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "powers.py").write_text("POWER = 1\n")
    (tmp_path / "within.py").write_text(
        "import parts.powers\nfrom torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        return x ** parts.powers.POWER\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    within, powers = (importlib.import_module(name) for name in ("within", "parts.powers"))
    before = modules_sha256(within.Net())
    monkeypatch.setattr(powers, "POWER", 3)
    assert modules_sha256(within.Net()) != before


def test_what_a_loss_reads_from_its_file_counts_whatever_its_type(monkeypatch):
    def loss(output, y):
        return sum(HELD) * (output - y).abs().mean()

    before = content_sha256(loss)
    for held in (deque([1, 2]), deque([3]), {1}, {2}, range(3), range(4), Decimal(1), Decimal(2), Namespace(k=1)):
        monkeypatch.setattr(f"{__name__}.HELD", held)
        assert content_sha256(loss) != before
        before = content_sha256(loss)


HELD: Any = ()


def test_graphs_count_by_their_code():
    graphs = [torch.fx.symbolic_trace(Attends(1.0, act)) for act in (torch.relu, torch.tanh, torch.tanh)]
    relu, tanh, again = map(modules_sha256, graphs)
    assert relu != tanh == again


def test_compiled_functions_and_modules_count_as_what_was_compiled():
    def loss(output, y):
        return (output - y).abs().mean()

    compiled = torch.compile(loss, backend="eager")
    compiled(torch.ones(2), torch.zeros(2))
    assert content_sha256(compiled) == content_sha256(loss)
    assert content_sha256(torch.compile(nn.Tanh(), backend="eager")) == content_sha256(nn.Tanh())


def test_attributes_and_properties_of_a_class_count():
    def loss(weight: float, exponent: Any) -> Any:
        class Weighted:
            scale, power = weight, property(exponent)

            def __call__(self, output, targets):
                return self.scale * (output - targets).abs().pow(self.power).mean()

        return Weighted()

    def square(_: Any) -> int:
        return 2

    def linear(_: Any) -> int:
        return 1

    given = ((1.0, square), (3.0, square), (1.0, linear), (1.0, square))
    one, heavier, other, again = (content_sha256(loss(*each)) for each in given)
    assert one == again
    assert len({one, heavier, other}) == 3


def test_what_a_class_counts_is_no_setting_of_its_modules():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return x

    module = Counting()
    before = modules_sha256(module)
    module(torch.zeros(1))
    assert modules_sha256(module) == before
