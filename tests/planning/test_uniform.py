"""Layers that are alike keep the same number of units; which ones is the choice of each layer."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.errors import ArgumentError
from hessprune.methods.values import Saliency
from hessprune.planning.uniform import alike


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


X = torch.zeros(1, 4)
UNIFORM = hp.Ranking(uniform=True)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), Block(), Block(), Block(), nn.Linear(6, 3))


def values(groups: hp.Groups) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {group.name: torch.rand(group.num_units, generator=generator) for group in groups}


@pytest.mark.parametrize("budget", [hp.Budget(macs=0.6), hp.Budget(params=0.4), hp.Budget(units=0.5)], ids=repr)
def test_as_many_units_leave_every_block_the_least_salient_ones(budget: hp.Budget) -> None:
    model = net()
    groups = hp.find_groups(model, X)
    saliency = values(groups)
    plan = hp.make_plan(model, groups, saliency, budget, example_inputs=X, ranking=UNIFORM)
    blocks = [group.name for group in groups if group.name.endswith("up")]
    assert len(blocks) == 3
    (count,) = {len(plan.removed[name]) for name in blocks}
    assert count
    for name in blocks:
        assert set(plan.removed[name]) == set(saliency[name].argsort()[:count].tolist())
    removal = hp.removal_for(model, groups, budget, example_inputs=X, ranking=UNIFORM)(saliency)
    assert {name: mask.nonzero().squeeze(1).tolist() for name, mask in removal.items()} == {
        name: list(units) for name, units in plan.removed.items()
    }
    assert plan.kept_fraction(budget.quantity) <= (budget.share or 1)


def test_no_smaller_step_would_do() -> None:
    model = net()
    groups = hp.find_groups(model, X, ignore=["0", "5"])
    plan = hp.make_plan(model, groups, values(groups), hp.Budget(units=0.7), example_inputs=X, ranking=UNIFORM)
    assert plan.num_removed == 9  # of 24, three at a time: 6 would keep more than 70 %


def test_groups_of_other_widths_or_places_differ() -> None:
    model = net()
    groups = hp.find_groups(model, X)
    sizes = [len(part) for part in alike(groups)]
    assert 3 in sizes
    assert sum(sizes) == len(groups)
    assert all(len({group.num_units for group in part}) == 1 for part in alike(groups))


def test_interactions_do_not_count() -> None:
    model = net()
    groups = hp.find_groups(model, X)
    alone = values(groups)
    total = sum(group.num_units for group in groups)
    noisy = Saliency(alone, interactions=torch.full((total, total), 5.0).fill_diagonal_(0.0), provenance={})
    plans = [
        hp.make_plan(model, groups, each, hp.Budget(macs=0.5), example_inputs=X, ranking=UNIFORM)
        for each in (alone, noisy)
    ]
    assert plans[0].removed == plans[1].removed


def test_what_no_configuration_says_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.zeros(1, 3, 8, 8)
    groups = hp.find_groups(model, x)
    with pytest.raises(ArgumentError, match=r"`implant` must be 0 beside ranking\.uniform"):
        hp.make_plan(
            model, groups, {"0": torch.ones(8)}, hp.Budget(macs=0.5), example_inputs=x, ranking=UNIFORM, implant=0.5
        )
    table = hp.latency_table(model, groups, x)
    with pytest.raises(ArgumentError, match=r"`ranking\.uniform` must stand beside a budget that is counted"):
        hp.make_plan(
            model,
            groups,
            {"0": torch.ones(8)},
            hp.Budget(latency_ms="90%", target=table),
            example_inputs=x,
            ranking=UNIFORM,
        )


def test_steps_keep_layers_alike() -> None:
    ranking = hp.Ranking(uniform=True, step=0.2)
    batches = [torch.randn(16, 4)]
    result = hp.prune(net(), X, batches, budget=hp.Budget(params=0.5), method="magnitude", ranking=ranking)
    kept = [module.up.out_features for module in result.model.modules() if isinstance(module, Block)]
    assert len(set(kept)) == 1
