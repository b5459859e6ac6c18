"""Layers that receive some rows of each sample, such as experts: their scores are those of a model without routing."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.layers.recording import record

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
