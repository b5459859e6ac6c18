"""Recovery without training: who judges between two states of BatchNorm."""

from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.pruning import recovery
from hessprune.surgery import calibration


@pytest.mark.parametrize(("size", "judges"), [(4, 144), (64, 160), (288, 288)])
def test_about_128_samples_spread_over_all_judge_batchnorm(
    size: int, judges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    x = torch.randn(288, 3, 6, 6)
    seen: list[torch.Tensor] = []
    own = recovery.mean_losses

    def mean_losses(objective: Any, dense: nn.Module, models: Any, batches: Any) -> list[float]:
        pairs = list(batches)
        seen.extend(inputs for inputs, _ in pairs)
        return own(objective, dense, models, pairs)

    monkeypatch.setattr(recovery, "mean_losses", mean_losses)
    batches = list(x.split(size))
    hp.prune(net, x[:1], batches, budget=hp.Budget(macs=0.5), method="magnitude")
    assert sum(map(len, seen)) == judges
    assert torch.equal(seen[-1], batches[len(batches) - 1 - (len(batches) - 1) % (288 // 128)])


@pytest.mark.parametrize("method", ["joint", "magnitude"])
def test_where_memory_holds_few_samples_a_refit_by_moments_of_all_stands_beside(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 8)
    batches, budget = list(x.split(8)), hp.Budget(macs=0.5)
    stats = hp.measure(net, x[:1], batches, method=method)
    by_moments = hp.prune(net, x[:1], batches, budget=budget, method=method, stats=stats)
    monkeypatch.setattr(calibration, "MEMORY", 16 * 24 * 8)  # eight samples: no refit by passes
    found = hp.prune(net, x[:1], batches, budget=budget, method=method)
    assert found.plan == by_moments.plan
    torch.testing.assert_close(found.model[2].weight, by_moments.model[2].weight)
    assert not torch.equal(found.model[2].weight, hp.apply_plan(net, found.plan)[2].weight)


def test_of_two_refits_the_one_with_the_lower_loss_on_other_samples_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 8)
    monkeypatch.setattr(calibration, "MEMORY", 16 * 24 * 24)
    monkeypatch.setattr(recovery, "take_over", lambda *_: nn.Linear(8, 4))  # worse than anything
    found = hp.prune(net, x[:1], [x], budget=hp.Budget(macs=0.5))
    assert found.model[0].out_features == 16
