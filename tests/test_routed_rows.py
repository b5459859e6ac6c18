"""Layers that receive some rows of each sample, such as experts: their scores are those of a model without routing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.layers.recording import record
from tests.networks.check import masked

METHODS = ["hap", "hap(estimator=exact)", "sosp-i", "sosp-h", "taylor", "nvit", "magnitude"]


class Experts(nn.Module):
    """A sequence whose positions go to one of three experts each; or all to all of them, and a mask decides."""

    def __init__(self, *, dense: bool, mask: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.gate, self.head = nn.Linear(6, 8), nn.Linear(6, 3), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8)) for _ in range(3))
        self.dense, self.mask = dense, mask

    def forward(self, x: Tensor) -> Tensor:
        flat = self.up(x).flatten(0, 1)
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        weight, chosen, out = weight.flatten()[:, None], chosen.flatten(), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            if self.dense:
                out = out + expert(flat) * weight * (chosen == number)[:, None]
            elif self.mask:
                rows = chosen == number
                out[rows] = expert(flat[rows]) * weight[rows]
            else:
                rows = torch.where(chosen == number)[0]
                out = out.index_add(0, rows, expert(flat[rows]) * weight[rows])
        return self.head(F.relu(out).view(*x.shape[:2], -1).mean(1))


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(24) % 3


def scores(model: nn.Module, method: str) -> Any:
    x, y = data()
    groups = [group for group in hp.find_groups(model, x) if group.name.startswith("experts")]
    assert len(groups) == 3
    return hp.saliency(model, groups, [(x, y)], method=method, loss_fn=F.cross_entropy)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_model_that_computes_all_rows(method: str, mask: bool) -> None:
    routed, whole = Experts(dense=False, mask=mask).double().eval(), Experts(dense=True).double().eval()
    torch.testing.assert_close(routed(data()[0]), whole(data()[0]))
    found, slow = scores(routed, method), scores(whole, method)
    for name in slow:
        torch.testing.assert_close(found[name], slow[name], rtol=1e-4, atol=1e-8)
        assert method == "magnitude" or bool((slow[name] > 0).any())


def test_only_experts_count_as_routed() -> None:
    x, _ = data()
    routed = record(Experts(dense=False).double(), x).routed
    assert routed == {f"experts.{n}.{place}.weight" for n in range(3) for place in (0, 2)}
    assert not record(Experts(dense=True).double(), x).routed


@pytest.mark.parametrize("method", ["joint", "sosp-i"])
@pytest.mark.parametrize("compensate", [True, False])
def test_experts_are_pruned_and_the_rest_refitted(method: str, compensate: bool) -> None:
    model, (x, y) = Experts(dense=False).double().eval(), data()
    result = hp.prune(model, x, [(x, y)], budget=hp.Budget(params=0.6), method=method, compensate=compensate)
    gone = {name for name, units in result.plan.removed.items() if len(units)}
    assert {"experts.0.0", "experts.1.0", "experts.2.0"} & gone
    with torch.no_grad():
        error = (result.model(x) - model(x)).square().mean() / model(x).square().mean()
    assert float(error) < 1


class BySign(nn.Module):
    """Positions go to one of two experts by the sign of their first number; or all to both, and a mask decides."""

    def __init__(self, *, dense: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head, self.dense = nn.Linear(6, 8), nn.Linear(8, 3), dense
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h, positive = self.up(x).flatten(0, 1), x[..., 0].flatten() > 0
        out = h
        for number, expert in enumerate(self.experts):
            mask = positive == bool(number)
            if self.dense:
                out = out + expert(h) * mask[:, None]
            else:
                out = out.index_add(0, mask.nonzero()[:, 0], expert(h[mask]))
        return self.head(out.relu().view(*x.shape[:2], -1).mean(1))


def check_scores(network: Callable[..., nn.Module], x: Tensor, batches: Any, method: str) -> None:
    """Compare the scores of experts with those of the twin that computes all rows."""
    found = []
    for dense in (False, True):
        model = network(dense=dense).double().eval()
        groups = [group for group in hp.find_groups(model, x) if group.name.startswith("experts")]
        found.append(hp.saliency(model, groups, batches, method=method, loss_fn=F.cross_entropy))
    for name, values in found[1].items():
        torch.testing.assert_close(found[0][name], values, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("negative", [[3, 3, 2, 4], [0, 0, 0, 6], [6, 0, 0, 0]])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("method", ["hap", "taylor", "sosp-i", "sosp-h"])
def test_equal_or_empty_shares_of_the_first_samples_prove_nothing(negative: list[int], size: int, method: str) -> None:
    x, y = torch.randn(4, 6, 6, dtype=torch.float64).abs(), torch.tensor([0, 1, 2, 0])
    for sample, number in enumerate(negative):
        x[sample, :number, 0] *= -1
    check_scores(BySign, x, list(zip(x.split(size), y.split(size), strict=True)), method)


def test_an_earlier_layer_changes_who_comes_to_a_later_expert() -> None:
    """The pruned model sends other rows to the second layer of experts: operations are not those that were planned."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 3, bias=False)
            nn.init.normal_(self.gate.weight)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))

        def forward(self, h: Tensor) -> Tensor:
            weight, chosen = self.gate(h).softmax(-1).max(-1)
            out = torch.zeros_like(h)
            for number, expert in enumerate(self.experts):
                rows = (chosen == number).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(h[rows]) * weight[rows, None])
            return h + out

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), Layer(), Layer(), nn.Linear(8, 3)).eval(), torch.randn(64, 4)
    result = hp.prune(model, x, [x], budget=hp.Budget(params=0.6), method="magnitude", compensate=False)
    assert result.cost_after.params < 0.65 * result.cost_before.params
    groups = hp.find_groups(model, x)
    torch.testing.assert_close(result.model(x), masked(model, groups, result.plan.removed)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["hap", "joint", "sosp-h", "taylor"])
def test_convolutions_may_be_experts(method: str) -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
            pairs = ((nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)) for _ in range(2))
            self.experts = nn.ModuleList(nn.Sequential(*pair) for pair in pairs)

        def forward(self, x: Tensor) -> Tensor:
            h, positive = self.up(x), x[:, 0, 0, 0] > 0
            out = torch.zeros_like(h)
            for number, expert in enumerate(self.experts):
                rows = (positive == bool(number)).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(h[rows]))
            return self.head(out.relu().mean((2, 3)))

    x = torch.randn(12, 3, 5, 5)
    result = hp.prune(Images().eval(), x, [(x, torch.arange(12) % 3)], budget=hp.Budget(params=0.7), method=method)
    assert result.cost_after.params < result.cost_before.params


@pytest.mark.parametrize("method", ["hap", "sosp-i", "taylor"])
def test_rows_may_be_split_by_counts_that_python_reads(method: str) -> None:
    class Sorted(nn.Module):
        def __init__(self, *, dense: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.up, self.head, self.dense = nn.Linear(6, 8), nn.Linear(8, 3), dense
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            h, chosen = self.up(x), (x[:, 0] > 0).long()
            parts = chosen.argsort(stable=True).split(F.one_hot(chosen, 2).sum(0).tolist())
            out = h
            for number, (expert, rows) in enumerate(zip(self.experts, parts, strict=True)):
                if self.dense:
                    out = out + expert(h) * (chosen == number)[:, None]
                else:
                    out = out.index_add(0, rows, expert(h[rows]))
            return self.head(out.relu())

    torch.manual_seed(1)
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    check_scores(Sorted, x, [(x, y)], method)
