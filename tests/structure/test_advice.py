"""Remedies where nothing of a model can be removed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


class Standardised(nn.Module):
    """Convolutions whose weights are normalised in the forward, as in BiT."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            weight = layer.weight.flatten(1)
            weight = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
            x = F.conv2d(x, weight.view_as(layer.weight), layer.bias).relu()
        return x.mean((2, 3))


class Normalised(nn.Module):
    """A layer whose neurons a norm normalises, as in BitNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x).relu()))


def test_weights_that_the_forward_computes_are_named() -> None:
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"none: the convolution's weight .*as parameters"):
        hp.find_groups(Standardised(), torch.randn(2, 3, 8, 8))


def test_channels_that_a_norm_normalises_go_on_request() -> None:
    model, x = Normalised(), torch.randn(4, 6)
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"normalises, with units=\('embedding',\)"):
        hp.find_groups(model, x)
    assert [group.name for group in hp.find_groups(model, x, units=("embedding",))] == ["a"]
