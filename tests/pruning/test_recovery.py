"""Recovery without training: who judges between two states of BatchNorm."""

from typing import Any

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.pruning import recovery


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
