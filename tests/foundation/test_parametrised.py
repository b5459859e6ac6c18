import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import hessprune as hp
from hessprune.errors import BudgetError, UnsupportedModelError
from hessprune.foundation.parametrised import as_code

X = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(16) % 4)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.f = nn.Linear(8, 4)

    def forward(self, x):
        return self.f(self.layers(x).mean((2, 3)))


def weight_norm_of_old(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def masked_twice(layer):
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.ln_structured(layer, "weight", 0.25, 2, 0)
    prune.random_unstructured(layer, "bias", 0.2)


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


KINDS = {
    "weight norm": (parametrizations.weight_norm, "a parametrization of 'weight' (WeightNorm)"),
    "spectral norm": (parametrizations.spectral_norm, "a parametrization of 'weight' (SpectralNorm)"),
    "orthogonal": (parametrizations.orthogonal, "a parametrization of 'weight' (Orthogonal)"),
    "older weight norm": (weight_norm_of_old, "weight_norm of 'weight'"),
    "older spectral norm": (nn.utils.spectral_norm, "spectral_norm of 'weight'"),
    "masks": (masked_twice, "a mask of 'weight'"),
}


def refusal(net):
    with pytest.raises(UnsupportedModelError) as caught:
        hp.prune(net, X[:1], BATCHES, budget=hp.Budget(macs=0.5))
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize(("compute", "kind"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["plain", "wrapped"])
def test_computed_weights_are_named_with_calls_that_help(compute, kind, wrap):
    torch.manual_seed(0)
    net = Net()
    for layer in (net.layers[0], net.layers[2], net.f):
        compute(layer)
    net(X).sum().backward()
    model = wrap(net).eval()
    before = model(X).detach()
    name = "layers.0" if model is net else "module.layers.0"
    text = refusal(model)
    assert f"got {kind} in module {name!r}, and" in text
    while calls := re.findall(r"torch\.nn\.utils\S*\(model[^;]*?'\)", text):
        for call in calls:
            eval(call, {"torch": torch, "model": model})
        try:
            result = hp.prune(model, X[:1], BATCHES, budget=hp.Budget(macs=0.5))
        except UnsupportedModelError as error:
            text = str(error)
        else:
            break
    assert torch.allclose(model(X), before, atol=1e-5)
    assert result.plan.kept_fraction("macs") <= 0.5


def test_one_computed_weight_is_named_alone():
    net = Net()
    prune.l1_unstructured(net.f, "weight", 0.3)
    with pytest.raises(UnsupportedModelError, match=r"in module 'f'\. Call torch.nn.utils.prune.remove\(model.f, 'w"):
        hp.find_groups(net, X[:1])


def test_many_computed_weights_make_one_short_line():
    net = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(8, 8)) for _ in range(30)))
    with pytest.raises(UnsupportedModelError, match=r"'0', and 29 more.*and so on for 26 more, '4' next\.$"):
        hp.find_groups(net, torch.zeros(1, 8))


def test_masked_models_are_evaluated_trained_and_counted():
    net = Net()
    masked_twice(net.layers[0])
    net(X).sum().backward()
    assert hp.evaluate(net, BATCHES).num_samples == 16
    assert hp.cost(net, X[:1]).macs == hp.cost(Net(), X[:1]).macs
    trained = hp.finetune(net, BATCHES, BATCHES, config=hp.FinetuneConfig(epochs=1)).model
    assert prune.is_pruned(trained)


def test_layers_beside_parametrised_ones_are_pruned():
    torch.manual_seed(0)
    net = Net()
    net.layers.append(parametrizations.weight_norm(nn.Conv2d(8, 8, 1)))
    found = hp.prune(net, X[:1], BATCHES, budget=hp.Budget(units=0.6), method="joint")
    assert [group.name for group in found.plan.groups] == ["layers.0"]
    with pytest.raises(BudgetError, match=r"must be reachable.*remove_parametrizations\(model.layers\[4\], 'weight'\)"):
        hp.prune(net, X[:1], BATCHES, budget=hp.Budget(macs=0.05), method="magnitude")


def test_curvature_of_parametrised_weights_comes_with_the_call():
    net = Net()
    nn.utils.parametrize.register_parametrization(net.layers[0], "weight", Double())
    with pytest.raises(
        UnsupportedModelError, match=r"`slices` must name weights.*remove_parametrizations\(model.layers\[0\]"
    ):
        hp.saliency(net, hp.find_groups(net, X[:1]), BATCHES, "hap")


def test_surgery_and_integers_need_weights_without_masks():
    net = Net()
    plan = hp.prune(net, X[:1], BATCHES, budget=hp.Budget(macs=0.5), method="magnitude").plan
    prune.l1_unstructured(net.f, "weight", 0.3)
    for call in (
        lambda: hp.apply_plan(net, plan),
        lambda: hp.saliency(net, plan.groups, BATCHES),
        lambda: hp.hessian_trace(net, plan.groups, BATCHES),
        lambda: hp.prepare_qat(net, X[:1]),
    ):
        with pytest.raises(UnsupportedModelError, match=r"prune.remove\(model.f, 'weight'\)"):
            call()
    parametrizations.weight_norm(net.layers[0])
    with pytest.raises(UnsupportedModelError, match=r"remove_parametrizations\(model.layers\[0\], 'weight'\)"):
        hp.prepare_qat(net, X[:1])


def test_expressions_reach_their_modules():
    model = nn.Sequential(nn.ModuleDict({"a-b": nn.ReLU(), "class": nn.ReLU(), "c": nn.ModuleList([nn.ReLU()])}))
    model.add_module("x", nn.Sequential(nn.ReLU()))
    for name, module in model.named_modules():
        assert eval(as_code(model, name), {"model": model}) is module
