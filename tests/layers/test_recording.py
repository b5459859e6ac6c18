"""Recordings: smooth functions behind weights, and BatchNorm that follows one weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import UnsupportedModelError
from hessprune.layers.recording import record

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Behind(nn.Module):
    """A convolution with a function behind it."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize(
    ("function", "is_smooth"),
    [
        (F.relu, False),
        (lambda y: 2 - y * 3, False),
        (lambda y: y / 2, False),
        (lambda y: 1 / (y.abs() + 1), True),
        (lambda y: y * y, True),
        (lambda y: y @ torch.ones(4, 2), False),
        (lambda y: F.max_pool2d(y, 2), False),
        (lambda y: F.max_pool2d(y, 2, return_indices=True)[0], False),
        (F.gelu, True),
        (lambda y: y.new_ones(y.shape[:1]) + y.mean((1, 2, 3)), False),
        (torch.erfinv, True),
        (lambda y: y.mT.exp(), True),
        (lambda y: y.type(torch.float64).exp(), True),
        (lambda y: y * float(y.detach().mean()), True),
        (lambda y: y.clone().masked_fill_(y > 0, 0.0), False),
        (torch.ops.aten.relu.default, False),
        (torch.ops.aten.gelu.default, True),
    ],
)
def test_smooth_functions_behind_a_weight(function, is_smooth: bool) -> None:
    assert record(Behind(function), X).smooth == ({"conv.weight"} if is_smooth else set())


class Normalised(nn.Module):
    """A convolution and a BatchNorm that is called in one of several spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.conv, self.norm, self.spelling = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), spelling

    def forward(self, x: Tensor) -> Tensor:
        y, norm = self.conv(x), self.norm
        if self.spelling == "module":
            return norm(y)
        mean, variance = norm.running_mean, norm.running_var
        if self.spelling == "functional":
            return F.batch_norm(y, mean, variance, norm.weight, norm.bias)
        if self.spelling == "keywords":
            return F.batch_norm(input=y, weight=norm.weight, bias=norm.bias, running_var=variance, running_mean=mean)
        func = torch.batch_norm if self.spelling == "torch" else torch.ops.aten.batch_norm.default
        return func(y, norm.weight, norm.bias, mean, variance, False, 0.1, 1e-5, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", ["module", "functional", "keywords", "torch", "aten"])
def test_a_batchnorm_in_any_spelling_can_be_folded(spelling: str) -> None:
    """ATen has the affine terms in front of the statistics, `F.batch_norm` behind them."""
    model = Normalised(spelling)
    recording = record(model, X)
    assert recording.foldable == [("conv.weight", id(model.norm.running_mean))]
    assert recording.absorbing == {"conv.weight": (id(model.norm.running_mean), 0)}


class SeenTwice(nn.Module):
    """The output of a convolution goes into a BatchNorm and, transposed, past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        transposed = y.mT
        return self.norm(y) + transposed


def test_an_attribute_that_computes_a_tensor_is_a_use_of_it() -> None:
    recording = record(SeenTwice(), X)
    assert recording.foldable == []
    assert recording.absorbing == {}


def test_statistics_of_the_batch_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match="must normalise with running statistics in evaluation mode"):
        record(model, X)


def test_an_in_place_activation_passes_the_weight_on() -> None:
    def function(y: Tensor) -> Tensor:
        torch.exp_(y)
        return y.relu_()

    assert record(Behind(function), X).smooth == {"conv.weight"}
    assert record(Behind(lambda y: F.relu(y, inplace=True)), X).smooth == set()


class Beside(nn.Module):
    """Two convolutions side by side in front of a BatchNorm, in one of the spellings of a concatenation."""

    def __init__(self, spelling: dict[str, int]) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(6)
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat(tensors=[self.left(x), self.right(x)], **self.spelling))


@pytest.mark.parametrize("spelling", [{"dim": 1}, {"axis": 1}, {"axis": -3}])
def test_a_concatenation_in_any_spelling_tells_who_lies_where(spelling: dict[str, int]) -> None:
    model = Beside(spelling)
    mean = id(model.norm.running_mean)
    assert record(model, X).absorbing == {"left.weight": (mean, 0), "right.weight": (mean, 4)}


def test_functions_may_take_their_tensors_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.table = (nn.Parameter(torch.ones(*size)) for size in ((6, 5), (5, 2), (3, 6)))

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)[:, :6] + F.embedding(input=x.flatten(1)[:, 0].long() * 0, weight=self.table)
            return torch.matmul(input=torch.mm(input=x, mat2=self.a), other=self.b)

    recording = record(Named(), X)
    assert [use.weight for use in recording.uses] == ["a", "b"]
    assert recording.looked_up == {"table"}


def test_a_weight_of_several_matrices_is_no_linear_map() -> None:
    """As the grouped layers of ConvBERT: other layers are scored, and groups that they make stay whole."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.groups, self.b = nn.Linear(6, 8), nn.Parameter(torch.randn(2, 4, 4)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu().unflatten(-1, (2, 4)).transpose(0, 1)
            return self.b(torch.matmul(x, self.groups).transpose(0, 1).flatten(1))

    recording = record(Grouped(), torch.randn(4, 6))
    assert [use.weight for use in recording.uses] == ["a.weight", "b.weight"]
    assert "groups" in recording.met
