"""All spellings of an operator have one name."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hessprune.operators.names import is_in_place, operator_name

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (aten.relu_.default, "relu"),
        (F.relu, "relu"),
        (Tensor.relu_, "relu"),
        (aten.conv2d.padding, "conv2d"),
        (torch.conv2d, "conv2d"),
        (Tensor.__radd__, "add"),
        (aten.add_.Tensor, "add"),
        (Tensor.__iadd__, "add"),
        (torch.multiply, "mul"),
        (Tensor.__matmul__, "matmul"),
        (torch.clip, "clamp"),
        (torch.concat, "cat"),
        (F._max_pool2d, "max_pool2d"),
        (aten.__and__.Tensor, "bitwise_and"),
        (Tensor.__rand__, "bitwise_and"),
        (operator.getitem, "getitem"),
        (torch.Tensor.T.__get__, "numpy_T"),  # type: ignore[attr-defined]
        (torch.Tensor.shape.__get__, "get"),  # type: ignore[attr-defined]
    ],
)
def test_spellings_of_an_operator_have_one_name(target, name: str) -> None:
    assert operator_name(target) == name


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (lambda x: 2 + x, "add"),
        (lambda x: x @ x.T, "matmul"),
        (lambda x: x / 2, "div"),
        (lambda x: F.max_pool1d(x, 2), "max_pool1d"),
        (lambda x: F.relu(x, inplace=True), "relu"),
    ],
)
def test_a_function_mode_sees_these_names(compute, name: str) -> None:
    seen = []

    class Names(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(operator_name(func))
            return func(*args, **kwargs or {})

    with Names():
        compute(torch.ones(2, 4))
    assert name in seen


def test_a_divided_number_is_not_the_quotient_of_its_arguments() -> None:
    """`1 / x` calls a method of x, with the divisor in front."""
    assert operator_name(Tensor.__rtruediv__) not in {"div", "true_divide"}


def test_in_place_forms_are_known_by_their_spelling() -> None:
    assert all(map(is_in_place, (aten.relu_.default, Tensor.mul_, Tensor.__setitem__)))
    assert not any(map(is_in_place, (aten.relu.default, torch.mul, Tensor.__add__, Tensor.__getitem__)))
