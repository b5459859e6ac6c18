"""Forwards with dropout and noise are repeatable, whatever the width."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.foundation.randomness import without_chance

WAYS = {
    "dropout": lambda x: F.dropout(x, 0.3, training=True),
    "dropout2d": lambda x: F.dropout2d(x, 0.3, training=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "noise": lambda x: x + torch.randn_like(x) * torch.rand(x.shape),
    "in place": lambda x: x * torch.empty_like(x).uniform_(0, 2),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_narrower_tensor_meets_the_same_numbers(way: str) -> None:
    def run(x: Tensor) -> Tensor:
        with without_chance():
            return WAYS[way](x)

    x = torch.arange(1.0, 25.0).reshape(1, 4, 3, 2)
    torch.testing.assert_close(run(x)[:, 1:], run(x[:, 1:]))
    assert run(x).unique().numel() > 1


def test_what_only_may_draw_keeps_its_result() -> None:
    x, rnn = torch.ones(1, 3, 2), torch.nn.LSTM(2, 3, batch_first=True)
    expected = rnn(x)[0]
    with without_chance():
        assert torch.equal(rnn(x)[0], expected)
        assert torch.equal(F.scaled_dot_product_attention(x, x, x), x)


def test_the_callers_random_state_stays() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with without_chance():
        torch.rand(5)
    assert torch.equal(torch.rand(3), expected)
