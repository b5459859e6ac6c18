"""The table of operators: one entry serves all users, and one new file adds an operator."""

import copy
import operator
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hessprune.operators as families
from hessprune.costs.budget import Budget
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.layers.recording import record
from hessprune.operators.maps import Convolution, Linear, SampleLayout
from hessprune.operators.table import OPERATORS, Operator, integer_kind, operator_of, read_linear_map, register
from hessprune.planning.planner import make_plan
from hessprune.structure.find import find_groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.slicing import mask_units
from tests.cases import image, lively

aten = torch.ops.aten

NEW_FILE = '''
"""A polynomial whose degree is the other value, said to be piecewise linear."""

from hessprune.operators.elementwise import elementwise
from hessprune.operators.table import register

register("special_chebyshev_polynomial_t", labels=elementwise, derivative="piecewise-linear")
'''


class Larger(nn.Module):
    """Two branches that meet in an operator without an entry."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(3, 6, 1)
        self.last = nn.Conv2d(6, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.special.chebyshev_polynomial_t(self.a(x), self.b(x)))


@pytest.fixture
def new_file(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files count as families; its operators leave the table again."""
    before = dict(OPERATORS)
    families.__path__.append(str(tmp_path))
    yield tmp_path / "largest.py"
    families.__path__.remove(str(tmp_path))
    sys.modules.pop("hessprune.operators.largest", None)
    vars(families).pop("largest", None)
    OPERATORS.clear()
    OPERATORS.update(before)


def test_one_new_file_adds_an_operator(new_file: Path) -> None:
    model, x = lively(Larger().double()).eval(), image().double()
    with pytest.raises(UnsupportedModelError, match="operator 'special_chebyshev_polynomial_t' has no rule"):
        find_groups(model, x)
    assert {"a.weight", "b.weight"} <= record(model, x).smooth

    new_file.write_text(NEW_FILE, encoding="utf-8")
    families.load_families()
    (group,) = find_groups(model, x)
    assert {piece.param for piece in group.slices} == {"a.weight", "a.bias", "b.weight", "b.bias", "last.weight"}
    assert not record(model, x).smooth

    plan = make_plan(model, [group], {group.name: torch.arange(6.0)}, Budget(params=0.6), example_inputs=x)
    masked = copy.deepcopy(model)
    mask_units(masked, plan.groups, plan.removed)
    pruned = apply_plan(model, plan)
    assert pruned.last.weight.shape[1] < 6
    torch.testing.assert_close(pruned(x), masked(x), rtol=0, atol=1e-10)


def test_the_new_operator_has_left_the_table() -> None:
    """Guards the other tests against the one above."""
    assert "special_chebyshev_polynomial_t" not in OPERATORS


def test_a_second_entry_for_a_name_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"`names` must be new to the table of operators, got \['relu'\]"):
        register("relu", derivative="smooth")
    assert OPERATORS["relu"].derivative == "piecewise-linear"


def test_an_unknown_operator_is_smooth_and_freezes() -> None:
    assert operator_of(torch.fft.fft) == Operator(name="fft_fft")


@pytest.mark.parametrize(
    ("derivative", "dependent", "is_piecewise_linear"),
    [
        ("piecewise-linear", [0, 1], True),
        ("product", [1], True),
        ("product", [0, 1], False),
        ("quotient", [0], True),
        ("quotient", [1], False),
        ("smooth", [0], False),
        ("smooth", [], True),
        ("look", [0], True),
    ],
)
def test_characters_say_in_which_arguments_an_operator_is_piecewise_linear(
    derivative, dependent: list[int], is_piecewise_linear: bool
) -> None:
    assert Operator(name="f", derivative=derivative).is_piecewise_linear(dependent) == is_piecewise_linear


INTEGER_KINDS = {
    "layer": (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default),
    "transposed layer": (
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
    ),
    "sum": (aten.add.Tensor, aten.add_.Tensor),
    "product": (aten.mul.Tensor, aten.mul_.Tensor),
    "pool": (aten.avg_pool2d.default,),
    "lookup": (aten.sigmoid.default,),
    "activation": (
        aten.relu.default,
        aten.relu_.default,
        aten.relu6.default,
        aten.hardtanh.default,
        aten.hardtanh_.default,
    ),
    "join": (aten.cat.default,),
    "split": (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
    "same": (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alias.default),
    "move": (
        operator.getitem,
        aten.max_pool2d.default,
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.permute.default,
        aten.transpose.int,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.pad.default,
        aten.constant_pad_nd.default,
        aten.clone.default,
        aten.contiguous.default,
    ),
    None: (
        aten.conv2d.padding,
        aten.view.dtype,
        aten.add.Scalar,
        aten.mul.Scalar,
        aten.squeeze.default,
        aten.hardswish.default,
        aten.softmax.int,
        aten.mean.dim,
        aten.batch_norm.default,
        torch.relu,
        "weight",
    ),
}


@pytest.mark.parametrize(("kind", "targets"), INTEGER_KINDS.items(), ids=map(str, INTEGER_KINDS))
def test_integer_kernels_by_overload(kind: str | None, targets: tuple) -> None:
    assert {str(target): integer_kind(target) for target in targets} == {str(target): kind for target in targets}


X, WEIGHT, MATRIX, BIAS = torch.randn(2, 4, 6, 6), torch.randn(5, 4, 3, 3), torch.randn(4, 7), torch.randn(7)


@pytest.mark.parametrize("func", [torch.conv2d, aten.conv2d.default], ids=["torch", "aten"])
def test_all_spellings_of_a_convolution_are_read_alike(func) -> None:
    reading = read_linear_map(func, (X, WEIGHT, None, [2, 2]), {})
    assert reading is not None
    (x, weight, bias), make = reading
    convolution = make(2, SampleLayout())
    assert isinstance(convolution, Convolution)
    assert convolution.stride == (2, 2)
    torch.testing.assert_close(convolution.forward(x, weight, bias), torch.conv2d(X, WEIGHT, stride=2))


@pytest.mark.parametrize("func", [torch.addmm, Tensor.addmm, aten.addmm.default])
def test_all_spellings_of_a_product_with_bias_are_read_alike(func) -> None:
    reading = read_linear_map(func, (BIAS, X[0, :, 0, :4], MATRIX), {})
    assert reading is not None
    arguments, make = reading
    product = make(4, SampleLayout())
    assert isinstance(product, Linear)
    assert product.transposed
    torch.testing.assert_close(product.forward(*arguments), torch.addmm(BIAS, X[0, :, 0, :4], MATRIX))


def test_scaled_and_in_place_products_are_not_read() -> None:
    square = torch.eye(4)
    assert read_linear_map(torch.addmm, (square, square, square), {"beta": 2}) is None
    assert read_linear_map(Tensor.addmm_, (square, square, square), {}) is None
    assert read_linear_map(torch.relu, (square,), {}) is None
