"""Answers tell forwards apart, and forgive rounding."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.answers import SUMS, agree, answers, tolerance_of

X = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """Outputs beside a mask of large numbers, and integers."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.factor * x.tanh()
        hidden[:, 0], hidden[:, 1] = torch.finfo(x.dtype).min, float("-inf")
        return hidden, hidden.argmax(1)


@pytest.mark.parametrize("factor", [1.01, -1.0, 0.5])
def test_another_forward_answers_otherwise(factor: float) -> None:
    one, other = answers(Masked(1.0), X), answers(Masked(factor), X)
    assert len(one) == 2 * SUMS
    assert agree(one, answers(Masked(1.0), X))
    assert not agree(one, other)
    assert not agree(one, one[1:])


def test_rounding_is_forgiven_and_randomness_is_repeated() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.GELU(), nn.Linear(64, 5), nn.Dropout(0.5)).train()
    single, double = answers(net, X), answers(net.double(), X.double())
    assert agree(single, double)
    assert net.training
    noisy = answers(nn.Dropout(0.5), X)
    assert agree(noisy, answers(nn.Dropout(0.5), X))
    half = net.bfloat16()
    assert agree(answers(half, X.bfloat16()), double, tolerance_of(half))
    assert tolerance_of(half) > tolerance_of(nn.Linear(1, 1))


def test_large_outputs_are_sampled() -> None:
    table = torch.randn(2, 70_000, generator=torch.Generator().manual_seed(0))
    assert agree(answers(nn.Identity(), table), answers(nn.Identity(), table.clone()))
    assert not agree(answers(nn.Identity(), table), answers(nn.ReLU(), table))
