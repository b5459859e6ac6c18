"""Folding BatchNorm changes the cost of a forward pass, and nothing that is reported."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hessprune.curvature import ParamSlice, block_traces
from hessprune.layers import folding
from hessprune.layers.folding import fold_batchnorm
from tests.curvature.nets import PIECEWISE, Residual, Transposed, all_rows, batches_of, build

EXACT = {"rtol": 1e-10, "atol": 1e-14}


@pytest.mark.parametrize(("factory", "number"), [(Residual, 3), (Transposed, 1)])
def test_every_pair_is_folded(factory, number):
    model, (inputs, _) = build(factory), batches_of()[0]
    folded = fold_batchnorm(model, inputs)
    assert len(folded.scale) == number
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())
    torch.testing.assert_close(folded.model(inputs), model(inputs), **EXACT)


@pytest.mark.parametrize("name", ["residual", "transposed"])
def test_traces_and_saliencies_are_unchanged_by_folding(name, monkeypatch):
    model, batches = build(PIECEWISE[name]), batches_of()
    with_folding = block_traces(model, all_rows(model), batches, precision="fp64")
    monkeypatch.setattr(folding, "_fold", lambda *args: pytest.fail("folded"))
    monkeypatch.setattr(folding, "_LAYERS", ())
    without = block_traces(model, all_rows(model), batches, precision="fp64")
    for key in without.values:
        torch.testing.assert_close(with_folding.values[key], without.values[key], **EXACT)


class Awkward(nn.Module):
    """Pairs that must not be folded: a second reader, a second call, a returned tensor, a hook, tied weights."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        if kind == "tied":
            self.other.weight = self.conv.weight
        if kind == "hook":
            self.conv.register_forward_hook(lambda module, args, output: output * 2)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        if self.kind == "reader":
            z = z + y
        if self.kind == "norm twice":
            z = z + self.norm(self.other(x))
        if self.kind == "conv twice":
            z = z + self.conv(x + 1)
        if self.kind == "tied":
            z = z + self.other(x)
        if self.kind == "activation":
            z = self.norm(F.relu(y))
        z = z.mean((2, 3))
        return (z, y) if self.kind == "returned" else z


@pytest.mark.parametrize("kind", ["reader", "norm twice", "conv twice", "tied", "returned", "hook", "activation"])
def test_what_cannot_be_folded_stays(kind):
    torch.manual_seed(0)
    model, x = Awkward(kind).eval(), torch.randn(2, 2, 4, 4)
    folded = fold_batchnorm(model, x)
    assert folded.scale == {}
    first = lambda output: output[0] if isinstance(output, tuple) else output  # noqa: E731
    torch.testing.assert_close(first(folded.model(x)), first(model(x)))


def test_a_model_that_reaches_its_norm_by_another_path_is_left_alone():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
            self.steps = [self.conv, self.norm]  # not registered: the copy's list is copied along

        def forward(self, x):
            return self.steps[1](self.steps[0](x)).mean((2, 3))

    model, x = Hidden().eval(), torch.randn(2, 2, 4, 4)
    nn.init.normal_(model.norm.bias)
    folded = fold_batchnorm(model, x)
    torch.testing.assert_close(folded.model(x), model(x))
    assert folded.scale == {}


def test_batchnorm_without_running_statistics_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="must normalise with running statistics"):
        fold_batchnorm(model, torch.randn(2, 2, 4, 4))


def test_the_model_is_left_as_it_was():
    model = build(Residual).train()
    model.conv1.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for estimator in ("exact", "rademacher"):
        block_traces(model, all_rows(model), batches_of(), estimator=estimator)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad
    assert bool((model.head.weight.grad == 1).all())
    assert model.conv2.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_unit_may_own_several_rows_and_slices():
    model, batches = build(Residual), batches_of()
    single = block_traces(model, all_rows(model), batches, precision="fp64").values
    scale = torch.tensor([2.0, 0.5])
    pieces = [
        ParamSlice(param="conv2.weight", dim=0, index=torch.tensor([[0, 1], [2, 3]]), scale=scale),
        ParamSlice(param="down.weight", dim=0, index=torch.tensor([[3], [0]])),
    ]
    both = block_traces(model, {"unit": pieces}, batches, precision="fp64").values["unit"]
    expected = single["conv2.weight:0"].view(2, 2).sum(1) * scale + single["down.weight:0"][[3, 0]]
    torch.testing.assert_close(both, expected, **EXACT)
