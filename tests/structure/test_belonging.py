"""Groups of another model are one line that names the parameter, wherever they are passed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError
from hessprune.structure.belonging import check_groups

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2


def net(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 2))


MODEL = net()
GROUPS = hp.find_groups(MODEL, X)
SALIENCY = {group.name: torch.arange(float(group.num_units)) for group in GROUPS}
BUDGET = hp.Budget(units=0.6)
METHODS = ("random", "magnitude", "taylor", "nvit", "hap", "sosp-h", "sosp-i", "joint", "bn_scale")
CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "make_plan": lambda model, groups: hp.make_plan(model, groups, SALIENCY, BUDGET, example_inputs=X),
    "removal_for": lambda model, groups: hp.removal_for(model, groups, BUDGET, example_inputs=X),
    "hessian_trace": lambda model, groups: hp.hessian_trace(model, groups, [(X, Y)]),
    "latency_table": lambda model, groups: hp.latency_table(model, groups, X),
    **{name: lambda model, groups, name=name: hp.saliency(model, groups, [(X, Y)], name) for name in METHODS},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (net(7), r"'0.weight' has shape \(7, 4\), too small in dim 0.* and 1 more"),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), r"'2.weight' is missing.* and \d more"),
    ],
    ids=["narrower", "another"],
)
def test_groups_of_another_model_are_refused(call: Callable, other: nn.Module, message: str) -> None:
    with pytest.raises(ArgumentError, match=rf"`groups` must be found on this model, but {message}\. Pass hp.find_g"):
        call(other, GROUPS)


@pytest.mark.parametrize("groups", [None, "0", ["0"], GROUPS[0], iter(GROUPS), 3], ids=range(6))
def test_what_is_no_groups_is_refused(groups: Any) -> None:
    with pytest.raises(ArgumentError, match=r"`groups` must be the groups of the model, got .*Pass hp.find_groups"):
        check_groups(MODEL, groups)


def test_some_groups_of_the_model_are_enough() -> None:
    assert check_groups(MODEL, GROUPS[1:]) == tuple(GROUPS[1:])
    assert check_groups(MODEL, ()) == ()
