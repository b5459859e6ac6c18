"""How many positions of each sample enter the statistics of layers that read units."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprune.curvature import reading_layers
from hessprune.curvature.reading_layers import input_moments
from hessprune.curvature.results import ParamSlice
from hessprune.layers.input_moments import InputMoments

SAMPLES, POSITIONS, INPUTS = 24, 16, 12


def moments(batches: Any) -> InputMoments:
    net = nn.Conv2d(INPUTS, 3, 1)
    piece = ParamSlice(param="weight", dim=1, index=torch.arange(INPUTS)[:, None])
    head = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return input_moments(head, {"x": [ParamSlice(param="0.weight", dim=1, index=piece.index)]}, batches)["0.weight"]


def images() -> Tensor:
    torch.manual_seed(0)
    mixed = torch.randn(INPUTS, INPUTS)
    return torch.einsum("ik,nkhw->nihw", mixed, torch.randn(SAMPLES, INPUTS, 4, 4))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_layers, "WIDE", INPUTS)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("size", [1, 7, SAMPLES])
def test_wide_layers_take_eight_positions_for_each_input(size: int) -> None:
    x = images()
    found = moments([(part, torch.zeros(len(part), dtype=torch.int64)) for part in x.split(size)])
    assert found.rows == SAMPLES * math.ceil(8 * INPUTS / SAMPLES) < SAMPLES * POSITIONS
    whole = moments([(x, torch.zeros(SAMPLES, dtype=torch.int64))])
    torch.testing.assert_close(found.covariance, whole.covariance, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("narrow")
def test_a_part_of_the_positions_tells_the_covariance() -> None:
    x = images()
    found = moments([(x, torch.zeros(SAMPLES, dtype=torch.int64))]).covariance[0]
    exact = torch.cov(x.movedim(1, 0).flatten(1), correction=0)
    assert float((found - exact).norm() / exact.norm()) < 0.5


@pytest.mark.usefixtures("narrow")
def test_streams_are_counted_before() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter([(x, torch.zeros(SAMPLES, dtype=torch.int64))])

    x = images()
    assert moments(Stream()).rows == moments(list(Stream())).rows < SAMPLES * POSITIONS


def test_all_positions_count_in_narrow_layers() -> None:
    assert moments([(images(), torch.zeros(SAMPLES, dtype=torch.int64))]).rows == SAMPLES * POSITIONS


def test_inputs_along_the_first_axis_are_wide_too() -> None:
    """As those of GPT-2, whose weights are transposed."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(reading_layers.WIDE, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    piece = ParamSlice(param="weight", dim=0, index=torch.arange(reading_layers.WIDE)[:, None])
    batches = [(torch.randn(4, reading_layers.WIDE), torch.tensor([0, 1, 0, 1]))]
    assert input_moments(Turned(), {"x": [piece]}, batches)["weight"].rows == 4
