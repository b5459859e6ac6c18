"""What the ranking says where a budget is out of reach."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import BudgetError


def test_a_model_that_mostly_stays_is_told_where_the_reasons_are():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.first, self.last = nn.LSTM(6, 24), nn.Linear(24, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.last(self.first(self.body(x)[0]).relu())

    x = torch.randn(4, 3, 6)
    with pytest.raises(BudgetError, match=r"at least macs=.*find_groups\(model, .*, compare=True\).frozen says"):
        hp.prune(Recurrent(), x, [x], budget=hp.Budget(macs=0.2), method="magnitude")
