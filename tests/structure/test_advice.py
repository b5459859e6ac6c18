"""Remedies where nothing of a model can be removed."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


class Standardised(nn.Module):
    """Convolutions whose weights are normalised in the forward, as in BiT."""

    def __init__(self, *, between: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        plain = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1))
        self.between = plain if between else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, standardised(self.a.weight), self.a.bias).relu()
        x = F.conv2d(self.between(x), standardised(self.b.weight), self.b.bias).relu()
        return x.mean((2, 3))


def standardised(weight: Tensor) -> Tensor:
    flat = weight.flatten(1)
    return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(weight)


class Normalised(nn.Module):
    """A layer whose neurons a norm normalises, as in BitNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).relu()))


def test_weights_that_the_forward_computes_are_named() -> None:
    model, x = Standardised(), torch.randn(2, 3, 8, 8)
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"none: the convolution's weight .*Put plain layers"):
        hp.find_groups(model, x)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    for layer, old in ((plain[0], model.a), (plain[2], model.b)):
        layer.weight, layer.bias = nn.Parameter(standardised(old.weight)), old.bias
    assert torch.allclose(plain(x).flatten(1), model(x))
    assert [group.name for group in hp.find_groups(plain, x)] == ["0"]


def test_plain_layers_between_computed_ones_are_pruned() -> None:
    groups = hp.find_groups(Standardised(between=True), torch.randn(2, 3, 8, 8))
    assert [group.name for group in groups] == ["between.0"]
    reasons = {item.reason for item in groups.frozen if item.param == "a.weight"}
    assert "the convolution's weight is computed, not a parameter" in reasons


def test_a_model_with_quantisers_is_to_be_pruned_before() -> None:
    quantisation = torch.ao.quantization
    model = nn.Sequential(quantisation.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    model.qconfig = quantisation.get_default_qat_qconfig("x86")
    x = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantisation.prepare_qat(model.train())
    prepared(x)
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"Prune the model before quantisers are put into it\."):
        hp.find_groups(prepared.eval(), x)


def test_channels_that_a_norm_normalises_go_on_request() -> None:
    model, x = Normalised(), torch.randn(4, 6)
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"normalises, with units=\('embedding',\)"):
        hp.find_groups(model, x)
    assert [group.name for group in hp.find_groups(model, x, units=("embedding",))] == ["a"]
