"""Names resolve to models, the user's own factories included, and wrong names say what is near."""

import re

import pytest
import torch
from torch import nn

from hessprune.errors import ArgumentError
from hessprune.lab.models import available_models, build_model

HERE = "tests.lab.models.test_registry"


class Tiny(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)


def takes_kwargs(**arguments: int) -> nn.Module:
    assert set(arguments) == {"num_classes"}
    return nn.Linear(1, arguments["num_classes"])


def takes_nothing() -> nn.Module:
    return nn.Linear(1, 1)


def needs_more(num_classes: int, depth: int) -> nn.Module:
    return nn.Linear(depth, num_classes)


def returns_text() -> str:
    return "no model"


NOT_CALLABLE = 3


def test_seed_decides_the_weights_and_leaves_the_callers_random_state():
    before = torch.random.get_rng_state()
    one, same, other = (build_model("digits-resnet", num_classes=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_weights_have_he_variance():
    weight = build_model("resnet56", num_classes=10).layer3[4].conv1.weight
    assert float(weight.detach().var()) == pytest.approx(2 / (64 * 9), rel=0.05)


def test_papers_models_are_listed():
    expected = {"resnet20", "resnet110-b", "preresnet29", "wrn28-8", "vgg16-bn", "vgg19-bn", "densenet40"}
    assert expected <= set(available_models())


def test_factory_receives_what_its_signature_names():
    model = build_model(f"{HERE}:Tiny", num_classes=5, in_channels=4)
    assert (model.fc.in_features, model.fc.out_features) == (4, 5)
    assert build_model(f"{HERE}:takes_kwargs", num_classes=6).out_features == 6
    assert build_model(f"{HERE}:takes_nothing", num_classes=6).out_features == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet65", "got 'resnet65'. Did you mean 'resnet56'?"),
        ("no.such.module:factory", "module 'no.such.module' of `name`"),
        (":factory", "module '' of `name`"),
        (f"{HERE}:takes_nothin", "must hold a callable 'takes_nothin'. Did you mean 'takes_nothing'?"),
        (f"{HERE}:NOT_CALLABLE", "must hold a callable 'NOT_CALLABLE'"),
        (f"{HERE}:needs_more", "got required parameter 'depth'"),
        (f"{HERE}:returns_text", "must return an nn.Module, got str"),
    ],
)
def test_wrong_name_is_refused(name, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        build_model(name, num_classes=2)


def test_a_module_that_fails_on_import_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_on_import.py").write_text("raise RuntimeError('operator does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=r"cannot be imported \(RuntimeError: operator does not exist\)"):
        build_model("broken_on_import:factory", num_classes=2)


@pytest.mark.parametrize(("argument", "value"), [("num_classes", 0), ("in_channels", 1.5)])
def test_wrong_size_is_refused(argument, value):
    with pytest.raises(ArgumentError, match=f"`{argument}` must be an integer"):
        build_model("resnet20", **{"num_classes": 10, "in_channels": 3, argument: value})
