"""Per-sample gradients and their norms, in every order of computing them, against one sample at a time."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hessprune.curvature import block_traces
from hessprune.layers.per_sample import Geometry, geometry_of, gram_norms, patch_gram
from hessprune.operators.maps import Convolution
from tests.curvature.nets import all_rows, batches_of, build, rows, weights

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # linear algebra in float64


@st.composite
def layers(draw) -> tuple[Convolution, Tensor, Tensor]:
    """A convolution of one to three dimensions with its input and weight."""
    rank = draw(st.integers(1, 3))
    sizes = {name: draw(st.tuples(*[st.integers(1, 3)] * rank)) for name in ("kernel", "stride", "dilation")}
    padding = draw(st.tuples(*[st.integers(0, 3)] * rank))
    spans = [d * (k - 1) + 1 for k, d in zip(sizes["kernel"], sizes["dilation"], strict=True)]
    least = [max(1, span - 2 * p) for span, p in zip(spans, padding, strict=True)]
    spatial = [size + draw(st.integers(0, 4)) for size in least]
    channels, outputs = draw(st.sampled_from([1, 3, 8])), draw(st.integers(1, 3))
    call = Convolution(
        stride=sizes["stride"], padding=padding, dilation=sizes["dilation"], output_padding=(0,) * rank, groups=1
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shapes = (2, channels, *spatial), (outputs, channels, *sizes["kernel"])
    x, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return call, x, weight


def one_by_one(call: Convolution, delta: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Every sample's weight gradient, by automatic differentiation."""
    weight = weight.clone().requires_grad_()
    parts = [(call.forward(one[None], weight, None)[0] * d).sum() for one, d in zip(x, delta, strict=True)]
    return torch.stack([torch.autograd.grad(part, weight)[0] for part in parts])


def geometry(call: Convolution, x: Tensor, weight: Tensor, delta: Tensor) -> Geometry:
    found = geometry_of(call, x, weight, delta)
    assert found is not None
    return found


@settings(deadline=None)
@given(layers())
def test_all_orders_give_each_samples_own_gradient(layer):
    call, x, weight = layer
    delta = call.forward(x, weight, None).cos()
    expected = one_by_one(call, delta, x, weight)
    torch.testing.assert_close(call.sample_gradients(delta, x, weight), expected, **EXACT)
    norms, sizes = expected.flatten(2).square().sum(2), geometry(call, x, weight, delta)
    for order in (sizes, replace(sizes, inputs=0), replace(sizes, inputs=10**6)):
        gram = patch_gram(call, x, weight, order)
        torch.testing.assert_close(gram_norms(call, gram, delta), norms, **EXACT)


@pytest.mark.parametrize(
    ("channels", "size", "stride", "shifts", "one", "ten"),
    [
        (16, 32, 1, False, False, False),  # what ResNets have on CIFAR images
        (64, 8, 1, True, True, True),
        (32, 16, 2, False, True, True),
    ],
)
def test_the_order_is_chosen_by_cost(channels, size, stride, shifts, one, ten):
    call = Convolution(stride=(stride,) * 2, padding=(1, 1), dilation=(1, 1), output_padding=(0, 0))
    x, weight = torch.zeros(1, channels, size, size), torch.zeros(channels * stride, channels, 3, 3)
    sizes = geometry(call, x, weight, call.forward(x, weight, None))
    assert (sizes.shifts, sizes.prefers_gram(1), sizes.prefers_gram(10)) == (shifts, one, ten)


class Mixed(nn.Sequential):
    """Layers for which different orders are cheapest."""

    def __init__(self) -> None:
        layers = [
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 32, 3, stride=2, padding=1),
            nn.Conv2d(32, 32, 3, padding=1),
        ]
        super().__init__(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten(), nn.Linear(512, 3))


@pytest.mark.parametrize("estimator", ["exact", "rademacher"])
def test_outputs_alone_or_with_inputs_are_the_same(estimator):
    """Only where nothing but outputs is wanted are Gram matrices used."""
    model, batches = build(Mixed), batches_of((3,), shape=(2, 8, 8))
    outputs = {f"{name}:0": [rows(model, name, 0)] for name in weights(model)}
    run = {"estimator": estimator, "precision": "fp64"}
    both, alone = (block_traces(model, slices, batches, **run).values for slices in (all_rows(model), outputs))
    for key, value in alone.items():
        torch.testing.assert_close(value, both[key], rtol=1e-10, atol=1e-14)
