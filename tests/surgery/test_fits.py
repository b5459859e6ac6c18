"""Plans and pruned models of another model are one line that names the parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError

X, Y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2


def net(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


MODEL, OTHER = net(8), net(6)
PLAN = hp.make_plan(
    MODEL, hp.find_groups(MODEL, X), {"0": torch.arange(8.0)}, hp.Budget(units=0.5), example_inputs=X[:1]
)
PRUNED = hp.apply_plan(MODEL, PLAN)
CALLS: dict[str, Callable[..., Any]] = {
    "verify": hp.verify,
    "compensate": lambda dense, pruned, plan: hp.compensate(dense, pruned, plan, [(X, Y)]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_models_must_be_those_of_the_plan(call: Callable[..., Any]) -> None:
    with pytest.raises(ArgumentError, match=r"`plan` must be made for `dense`, but '0.weight' has shape \(6, 4\)"):
        call(OTHER, PRUNED, PLAN)
    with pytest.raises(ArgumentError, match=r"`pruned` must have the shapes .*'0.weight' must be \(4, 4\), got \(6, 4"):
        call(MODEL, OTHER, PLAN)
    with pytest.raises(ArgumentError, match="`plan` must be a Plan, got None"):
        call(MODEL, PRUNED, None)
    call(MODEL, PRUNED, PLAN)


@pytest.mark.parametrize("plan", [None, PLAN.to_json(), {}], ids=lambda value: type(value).__name__)
def test_only_a_plan_can_be_applied(plan: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`plan` must be a Plan, got .*Pass the result of hp.make_plan"):
        hp.apply_plan(MODEL, plan)
