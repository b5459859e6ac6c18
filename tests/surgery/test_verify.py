"""Verification where outputs are not finite, or become so by masking."""

import math

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import VerificationError
from hessprune.planning.plan import Plan


class Standardised(nn.Module):
    """A stored deviation divides the channels: masked to zero, it makes outputs NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.register_buffer("mean", torch.randn(1, 8, 1, 1))
        self.register_buffer("std", torch.rand(1, 8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) - self.mean) / self.std
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class CountsToo(Standardised):
    """The width stands in the source code as well, so slicing is wrong here."""

    def forward(self, x: Tensor) -> Tensor:
        x = (self.first(x) - self.mean) / self.std
        x = x / math.sqrt(x.shape[1])
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Logarithm(nn.Module):
    """NaN wherever the input is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.log())


def plan_for(model: nn.Module, x: Tensor) -> Plan:
    groups = hp.find_groups(model, x)
    saliency = {group.name: torch.arange(float(group.num_units)) for group in groups}
    return hp.make_plan(model, groups, saliency, hp.Budget(units=0.7), example_inputs=x)


def example(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_masked_divisor_does_not_make_the_check_vacuous() -> None:
    torch.manual_seed(0)
    x = example(2, 3, 8, 8)
    model = Standardised().eval()
    plan = plan_for(model, x)
    assert plan.removed["first"]
    assert hp.verify(model, hp.apply_plan(model, plan), plan, x) < 1e-12


def test_a_wrong_model_is_refused_though_masking_gives_nan() -> None:
    torch.manual_seed(0)
    model = CountsToo().eval()
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.apply_plan(model, plan_for(model, example(2, 3, 8, 8)), example_inputs=example(2, 3, 8, 8))


def test_outputs_that_are_nan_everywhere_prove_nothing() -> None:
    model, x = Logarithm(), example(2, 4).abs()
    plan = plan_for(model, x)
    with pytest.raises(VerificationError, match=r"not finite on these inputs.*Pass example_inputs"):
        hp.apply_plan(model, plan, example_inputs=-x)
    hp.apply_plan(model, plan, example_inputs=x)


def test_made_up_inputs_are_positive_where_others_give_nan() -> None:
    model = Logarithm()
    plan = plan_for(model, torch.ones(2, 4))
    pruned = hp.apply_plan(model, plan)
    with torch.no_grad():
        pruned.body[0].weight.add_(1.0)
    with pytest.raises(VerificationError, match="must equal the masked dense model"):
        hp.verify(model, pruned, plan)
