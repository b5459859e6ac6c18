"""Refits on samples of many shapes."""

import torch
from torch import nn

import hessprune as hp
from hessprune.planning.planner import plan_removing
from hessprune.surgery.compensation import refit


def test_samples_that_all_differ_in_shape_fit_and_judge() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).requires_grad_(False)
    model[0].weight[4:], model[0].bias[4:] = model[0].weight[:4], model[0].bias[:4]  # the first units can do it all
    data = [torch.randn(1, length, 4) for length in range(20, 32)]
    facts = {"example_inputs": data[0], "provenance": {}}
    groups = hp.find_groups(model, data[0])
    plan = plan_removing(model, groups, {groups[0].name: (4, 5, 6, 7)}, hp.Budget(macs=0.9), **facts)
    pruned = hp.apply_plan(model, plan)
    repaired = refit(model, pruned, plan, data)
    before, after = (float((net(data[-1]) - model(data[-1])).abs().max()) for net in (pruned, repaired))
    assert after < 0.01 * before, "the first of each shape judges, and none fits"
