"""Shapes without numbers at the least cost are the shapes that torch gives, and what torch refuses is still refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from hessprune.foundation.quicksizes import _ELEMENTWISE, KnownSizes, QuickSizes


def same_shapes(*calls):
    """Return the shapes and types of some calls' results as torch gives them, and without its decompositions."""
    plain = [(result.shape, result.dtype) for result in (call() for call in calls)]
    with QuickSizes():
        quick = [(result.shape, result.dtype) for result in (call() for call in calls)]
    return plain, quick


def test_the_shapes_are_those_of_torch():
    image, text = torch.zeros(2, 3, 8, 6, device="meta"), torch.zeros(2, 5, 4, device="meta", dtype=torch.float16)
    norm, lines = nn.LayerNorm(4, device="meta"), torch.zeros(7, 4, device="meta", dtype=torch.float16)
    rest = {functional.softmax: {"dim": 1}, torch.softmax: {"dim": 1}, torch.Tensor.softmax: {"dim": 1}}
    rest |= {torch.clamp: {"min": 0}, torch.Tensor.clamp: {"min": 0}}
    calls = [lambda f=f: f(text, **rest.get(f, {})) for f in _ELEMENTWISE]
    calls += [
        lambda: functional.interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True),
        lambda: functional.interpolate(image, size=(3, 9), mode="bicubic", align_corners=True),
        lambda: functional.interpolate(text, scale_factor=2.5, mode="linear", recompute_scale_factor=True),
        lambda: norm(text.float()),
        lambda: functional.linear(text, lines, lines[:, 0]),
        lambda: functional.linear(text[0, 0], lines),
        lambda: text.softmax(-1, dtype=torch.float64),
    ]
    plain, quick = same_shapes(*calls)
    assert quick == plain


RECURRENT = [
    nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True),
    nn.LSTM(4, 6, proj_size=3, bias=False),
    nn.GRU(4, 5, bidirectional=True),
    nn.RNN(4, 5, nonlinearity="relu", batch_first=True),
]


@pytest.mark.parametrize("layer", RECURRENT, ids=str)
def test_recurrent_layers_have_the_shapes_of_torch(layer):
    steps, layer = torch.zeros(2, 7, 4, device="meta"), layer.to("meta")

    def shapes():
        return [tuple(each.shape) for each in tree_leaves(layer(steps))]

    plain = shapes()
    with QuickSizes():
        assert shapes() == plain


def test_a_recurrent_layer_whose_weights_do_not_fit_is_refused():
    layer = nn.LSTM(4, 6, device="meta")
    layer.weight_hh_l0 = nn.Parameter(torch.zeros(24, 5, device="meta"))
    layer._flat_weights[1] = layer.weight_hh_l0
    with QuickSizes(), pytest.raises(RuntimeError):
        layer(torch.zeros(2, 7, 4, device="meta"))


@pytest.mark.parametrize("layer", [nn.LayerNorm(5), nn.Linear(5, 2)])
def test_what_does_not_fit_is_refused(layer):
    with QuickSizes(), pytest.raises(RuntimeError):
        layer.to("meta")(torch.zeros(2, 4, device="meta"))


def test_bounds_of_another_shape_are_refused():
    channels, bound = torch.zeros(2, 4, device="meta"), torch.zeros(5, device="meta")
    with QuickSizes(), pytest.raises(RuntimeError):
        channels.clamp(min=bound)


def test_tensors_with_numbers_are_computed():
    values = torch.randn(2, 3)
    with QuickSizes():
        assert torch.equal(functional.relu(values), values.clamp(min=0))


def test_known_shapes_are_those_of_torch():
    x, y = torch.zeros(2, 5, 4, device="meta"), torch.zeros(4, device="meta", dtype=torch.float16)
    calls = [
        lambda: x * y,
        lambda: x.mean(-1, keepdim=True),
        lambda: x.mT @ x,
        lambda: functional.scaled_dot_product_attention(x, x, x),
        lambda: x.sum(1).max(0).values,
        lambda: x.to(torch.float64),
        lambda: x > 1,
    ]
    plain = [(r.shape, r.stride(), r.dtype) for r in (call() for call in calls)]
    for _ in range(2):
        with KnownSizes() as sizes:
            known = [(r.shape, r.stride(), r.dtype) for r in (call() for call in [*calls, *calls])]
        assert known == [*plain, *plain]
        assert sizes.known


def test_views_writes_and_numbers_are_not_remembered():
    x, numbers = torch.zeros(2, 3, device="meta"), torch.ones(2, 3)
    with KnownSizes() as sizes:
        assert x.view(3, 2)._base is x
        assert x.add_(1) is x
        assert torch.equal(numbers + 1, 2 * torch.ones(2, 3))
    assert not sizes.known
