"""The states in which models arrive at `hp.prune`: precision, mode, memory format, frozen weights, BatchNorm."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError, DataError, UnsupportedModelError

X = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 4
HALF = hp.Budget(macs=0.5)
METHODS = ("magnitude", "taylor", "hap", "joint")


class Net(nn.Module):
    def __init__(self, **norm):
        super().__init__()
        self.a, self.n, self.d = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **norm), nn.Dropout(0.5)
        self.b, self.f = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.f(self.d(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3))))


def made(**norm):
    torch.manual_seed(0)
    net = Net(**norm)
    if not norm:
        net(X)
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_in_any_precision_stay_in_it(dtype, method):
    net, batches = made().to(dtype), [(X.to(dtype), Y)]
    result = hp.prune(net, batches[0][0][:1], batches, budget=HALF, method=method)
    assert {value.dtype for value in result.model.parameters()} == {dtype}
    assert result.plan.kept_fraction("macs") <= 0.5


def test_data_in_another_precision_are_named_with_the_remedy():
    net, remedy = made().half(), r"The weights are float16, the inputs float32: call model.float\(\), or"
    with pytest.raises(UnsupportedModelError, match=remedy):
        hp.prune(net, X[:1], [(X, Y)], budget=HALF)
    for method in METHODS[1:]:
        with pytest.raises(DataError, match=remedy):
            hp.prune(net, X[:1].half(), [(X, Y)], budget=HALF, method=method)


def test_integers_need_float32():
    with pytest.raises(ArgumentError, match=r"got torch.bfloat16 in 'a.weight'\. Call model.float\(\) first"):
        hp.prepare_qat(made().bfloat16(), X[:1].bfloat16())


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_model(training):
    net = made().train(training)
    net.n.train(not training)
    before = net.n.running_mean.clone()
    result = hp.prune(net, X[:1], [(X, Y)], budget=HALF)
    assert [module.training for module in result.model.modules()] == [module.training for module in net.modules()]
    assert torch.equal(net.n.running_mean, before)


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_models_stay_so(method):
    net, x = made().to(memory_format=torch.channels_last), X.to(memory_format=torch.channels_last)
    result = hp.prune(net, x[:1], [(x, Y)], budget=HALF, method=method)
    for layer in (result.model.a, result.model.b):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert result.plan.removed == hp.prune(made(), X[:1], [(X, Y)], budget=HALF, method=method).plan.removed


@pytest.mark.parametrize("method", [*METHODS, "sosp-h", "hap(estimator=hutchinson,num_probes=3)"])
def test_frozen_parameters_prune_as_others(method):
    frozen = made()
    frozen.requires_grad_(False).f.requires_grad_(True)
    results = [hp.prune(net, X[:1], [(X, Y)], budget=HALF, method=method) for net in (frozen, made())]
    assert results[0].plan.removed == results[1].plan.removed
    assert not results[0].model.a.weight.requires_grad
    assert results[0].model.f.weight.requires_grad


def test_batchnorm_without_statistics_is_named_and_the_remedy_helps():
    model, batches = made(track_running_stats=False), [(X, Y)]
    for affine in (True, False):
        model.n = nn.BatchNorm2d(8, affine=affine, track_running_stats=False)
        with pytest.raises(
            UnsupportedModelError, match=r"without them in module 'n'.*hp.reestimate_batchnorm\(model, b"
        ):
            hp.prune(model, X[:1], batches, budget=HALF)
        repaired = hp.reestimate_batchnorm(model, batches)
        assert model.n.running_mean is None
        assert torch.allclose(repaired.eval()(X), model.eval()(X), atol=1e-2)
        assert hp.prune(repaired, X[:1], batches, budget=HALF).plan.num_removed


@pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")  # torch copies its own graphs so
def test_models_exported_for_one_sample_are_refused_in_one_line():
    exported = torch.export.export(made().eval(), (X[:1],)).module()
    with pytest.raises(DataError, match=r"inputs in `batches` must fit the model, got float32 \(2, 3, 6, 6\)[^\n]*$"):
        hp.prune(exported, X[:1], [(X, Y)], budget=HALF)
