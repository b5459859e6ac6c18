"""Products with views of weights: their scores and refits are those of the layers that are called plainly."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.layers.recording import record
from hessprune.layers.views import detour_by
from hessprune.operators.maps import Linear, SampleLayout

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BATCHES = [(X, torch.arange(24) % 3)]
WHOLE = {
    "turned": lambda x, w, b: x @ w.T + b,
    "turned twice": lambda x, w, b: F.linear(x, w.t().t(), b),
    "by addmm": lambda x, w, b: torch.addmm(b, x, w.mT),
    "on the left": lambda x, w, b: (w @ x.T).T + b,
    "as a kernel": lambda x, w, b: F.conv1d(x[:, :, None], w[:, :, None], b)[:, :, 0],
}
PARTS = {
    "rows": lambda x, w, b: torch.cat([F.linear(x, *each) for each in zip(w.chunk(2), b.chunk(2), strict=True)], -1),
    "columns": lambda x, w, b: sum(F.linear(*each) for each in zip(x.chunk(2, -1), w.chunk(2, 1), strict=True)) + b,
    "turned rows": lambda x, w, b: torch.cat([x @ w[:1].T, x @ w.T[:, 1:]], -1) + b,
}
METHODS = ("hap", "nvit", "taylor", "sosp-i", hp.HAP(estimator="hutchinson", num_probes=2))


class Layer(nn.Linear):
    """A linear layer that multiplies by a view of its weight."""

    def __init__(self, inputs: int, outputs: int, product) -> None:
        super().__init__(inputs, outputs)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def bias_apart(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight) + bias


def net(product=F.linear) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Layer(6, 8, product), nn.ReLU(), Layer(8, 4, product)).double()


@pytest.mark.parametrize("spelling", WHOLE | PARTS)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_scores_are_those_of_the_plain_layer(spelling: str, method) -> None:
    viewed, plain = net((WHOLE | PARTS)[spelling]), net()
    groups = hp.find_groups(plain, X[:1])
    found, expected = (hp.saliency(model, groups, BATCHES, method=method)["0"] for model in (viewed, plain))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("spelling", WHOLE)
def test_a_refit_is_that_of_the_plain_layer(spelling: str) -> None:
    models = [net(WHOLE[spelling]), net(bias_apart if spelling in {"turned", "on the left"} else F.linear)]
    viewed, plain = (hp.prune(m, X[:1], BATCHES, budget=hp.Budget(macs=0.5)) for m in models)
    torch.testing.assert_close(viewed.model(X), plain.model(X))


@pytest.mark.parametrize("spelling", ["rows", "columns"])
def test_a_weight_that_is_used_in_parts_keeps_its_numbers(spelling: str) -> None:
    model = net(PARTS[spelling])
    assert record(model, X).divided == {"0.weight", "2.weight"}
    result = hp.prune(model, X[:1], BATCHES, budget=hp.Budget(macs=0.5), method="joint")
    whole, part = model[2].weight, result.model[2].weight
    assert all(any(torch.equal(column, own) for own in whole.T) for column in part.T)


class Pointwise(nn.Module):
    """Two convolutions with kernels of one entry, called or flattened."""

    def __init__(self, is_flat: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.is_flat = nn.Conv2d(6, 8, 1).double(), nn.Conv2d(8, 3, 1).double(), is_flat

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_flat:
            return self.b(self.a(x[:, :, None, None]).relu()).flatten(1)
        return F.linear(F.linear(x, self.a.weight.squeeze(), self.a.bias).relu(), self.b.weight.flatten(1), self.b.bias)


def test_kernels_of_one_entry_are_a_linear_map() -> None:
    flat, plain = Pointwise(is_flat=True), Pointwise(is_flat=False)
    for method in METHODS:
        found, expected = (hp.saliency(m, hp.find_groups(m, X[:1]), BATCHES, method=method)["a"] for m in (flat, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    results = (hp.prune(model, X[:1], BATCHES, budget=hp.Budget(macs=0.5)) for model in (flat, plain))
    torch.testing.assert_close(*(result.model(X) for result in results))


def test_other_views_are_left_alone() -> None:
    weight = torch.randn(4, 6)
    call, layout = Linear(samples=1), SampleLayout()
    for view in (weight.view(6, 4), weight[::2], weight.flatten()[1:13].view(2, 6), weight.view(torch.int32)):
        assert detour_by(call, view, weight, 1, layout) is None
    kernels = torch.randn(4, 1, 3)
    for view in (kernels.transpose(0, 1), kernels.transpose(1, 2)):
        assert detour_by(call, view, kernels, 1, layout) is None


def test_cross_attention_is_scored() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(x + self.attention(x, y, y, need_weights=False)[0])

    torch.manual_seed(0)
    inputs = torch.randn(8, 5, 16), torch.randn(8, 7, 16)
    batches = [(inputs, torch.randn(8, 5, 3))]
    for method in ("joint", "hap", "nvit", "taylor", "sosp-i"):
        model = Decoder()
        groups = hp.find_groups(model, inputs)
        saliency = hp.saliency(model, groups, batches, method=method, loss_fn=F.mse_loss)
        assert not saliency.provenance.get("unseen")
        assert len(set(saliency["attention"].tolist())) == 4
