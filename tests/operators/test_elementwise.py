"""Element-wise operators."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.operators.names import operator_name
from hessprune.operators.table import OPERATORS
from tests.networks.check import masked

RARE = ("_backward", "_polynomial_", "_bessel_", "airy_ai", "frexp", "xor", "shift", "conj_", "equal")
"""Parts of names of operators that no forward of real numbers calls, or that return several tensors."""


def _names() -> set[str]:
    schemas = (schema.name for schema in torch._C._jit_get_all_schemas())
    return {name.removeprefix("aten::") for name in schemas if name.startswith("aten::") and "." not in name}


def test_every_elementwise_operator_of_torch_has_a_rule() -> None:
    names = set()
    for packet in map(partial(getattr, torch.ops.aten), _names()):
        for overload in packet.overloads():
            if torch.Tag.pointwise in getattr(packet, overload).tags:
                names.add(operator_name(getattr(packet, overload)))
    missing = {name for name in names if name not in OPERATORS or OPERATORS[name].labels is None}
    assert len(names) > 150
    assert not [name for name in missing if not any(part in name for part in RARE)]


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: a.sigmoid().arccos() + b.cosh(),
        lambda a, b: torch.logaddexp(a, b) + torch.hypot(a, b).add(1).log10(),
        lambda a, b: torch.special.expit(a).subtract(torch.copysign(a, b)).exp2(),
        lambda a, b: torch.heaviside(a, b) + torch.xlogy(a.sigmoid(), b.exp()).exp().lgamma(),
        lambda a, b: torch.where(torch.isfinite(a).logical_xor(torch.greater(a, b)), a.tan(), b.erfc()),
    ],
)
def test_units_leave_through_functions_that_are_not_zero_at_zero(f) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(f(self.a(x), self.b(x)))

    torch.manual_seed(0)
    model, x = Two().double().eval(), torch.randn(4, 6).double()
    (group,) = hp.find_groups(model, x, compare=True)
    plan = hp.make_plan(model, [group], {"a": torch.arange(8.0)}, hp.Budget(units=0.5), example_inputs=x)
    smaller, expected = hp.apply_plan(model, plan, example_inputs=x), masked(model, [group], plan.removed)
    assert len(plan.removed["a"]) == 4
    assert torch.allclose(smaller(x), expected(x), rtol=0, atol=1e-10)


def test_a_tensor_that_gives_its_type_alone_ties_nothing() -> None:
    class Typed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, width), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.a(x).relu().type_as(self.b(x)))

    for width in (5, 8):
        (group,) = (group for group in hp.find_groups(Typed(width).eval(), torch.randn(4, 6)) if group.name == "a")
        assert {piece.param for piece in group.slices} == {"a.weight", "a.bias", "c.weight"}
