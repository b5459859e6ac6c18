"""The joint criterion where the survivors compensate."""

import torch
from torch import nn

import hessprune as hp
from hessprune.methods.repair import _rising


def test_units_that_others_can_replace_go_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double().requires_grad_(False)
    model[0].weight[5] = model[0].weight[0] + model[0].weight[1]  # loud, and of no use
    model[0].bias[5] = 7
    model[1].weight[:, 5] = torch.tensor([10.0, -10.0, 0.0])
    x = torch.randn(64, 6, dtype=torch.float64)
    groups = hp.find_groups(model, x)
    batches = [(x, torch.arange(64) % 3)]
    compensated = hp.saliency(model, groups, batches, "joint")[groups[0]]
    plain = hp.saliency(model, groups, batches, "joint", settings=hp.Settings(compensated=False))[groups[0]]
    assert compensated.argmin() in (0, 1, 5)
    assert float(compensated.min()) < 1e-3 * float(compensated.median())
    assert plain.argmax() == 5


def test_ranking_by_value_follows_the_order_of_elimination() -> None:
    steps = torch.tensor([1.0, 3.0, 2.0, 0.0, 5.0], dtype=torch.float64)
    rising = _rising(steps)
    torch.testing.assert_close(rising, torch.tensor([1.0, 5 / 3, 5 / 3, 5 / 3, 5.0]).double(), rtol=1e-6, atol=0)
    assert bool((rising.diff() > 0).all())
    assert bool((_rising(torch.zeros(3).double()).diff() > 0).all())
