"""The removal for a budget is the plan's, and is stable under noise only where the ranking is."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.foundation.padding import ChannelPad
from tests.cases import ChunkCat, Grouped, Plain, Residual, image, make

X = image(size=8, batch=2)


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped])
@pytest.mark.parametrize("budget", [hp.Budget(macs=0.6), hp.Budget(params=0.6)])
def test_it_removes_what_the_plan_removes(case, budget):
    model = make(case)
    groups = hp.find_groups(model, X)
    ranking = hp.Ranking(min_kept_fraction=0.2, ignore=(groups[0].name,))
    removed = hp.removal_for(model, groups, budget, example_inputs=X, ranking=ranking)
    for seed in range(3):
        values = hp.saliency(model, groups, [(X, torch.tensor([0, 1]))], hp.Random(seed=seed))
        ranking = hp.Ranking(min_kept_fraction=0.2, ignore=(groups[0].name,), per_cost=True)
        plan = hp.make_plan(model, groups, values, budget, example_inputs=X, ranking=ranking)
        assert {name: tuple(mask.nonzero()[:, 0].tolist()) for name, mask in removed(values).items()} == plan.removed


def test_wrong_values_and_layers_are_named():
    model = make(Plain)
    groups = hp.find_groups(model, X)
    with pytest.raises(ValueError, match="`ignore` must match group names"):
        hp.removal_for(model, groups, hp.Budget(macs=0.5), example_inputs=X, ranking=hp.Ranking(ignore=("nothing*",)))
    removed = hp.removal_for(model, groups, hp.Budget(macs=0.5), example_inputs=X)
    with pytest.raises(ValueError, match="`values` must have an entry for group"):
        removed({})


class Padded(nn.Module):
    """Units that nothing produces, which curvature does not know of, are part of the decision."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pad = nn.Conv2d(3, 8, 3), ChannelPad(1, 1)
        self.b, self.head = nn.Conv2d(10, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.relu(self.b(self.pad(torch.relu(self.a(x))))).mean((2, 3)))


@pytest.mark.parametrize("case", [Residual, Padded])
def test_saliencies_settle_on_the_plan_of_the_exact_ones(case):
    """What goes another way than by the exact saliencies lies within the stated error of the threshold."""
    model = make(case)
    groups, inputs = hp.find_groups(model, X), image(size=8, batch=64)
    batches, budget = [(inputs, torch.arange(64) % 4)], hp.Budget(macs=0.5)
    removed = hp.removal_for(model, groups, budget, example_inputs=X)
    exact = hp.saliency(model, groups, batches, "hap")
    until = hp.Until(removed=removed, confidence=0.9)
    method = hp.HAP(estimator="rademacher", num_probes=512, until=until, precision="fp64")
    drawn = hp.saliency(model, groups, batches, method)
    assert drawn.provenance["settled"] is True
    assert 8 <= drawn.provenance["num_probes"] < 512
    ours, theirs = removed(drawn), removed(exact)
    for name, errors in drawn.standard_error.items():
        differing = ours[name] != theirs[name]
        if bool(differing.any()):
            rank = drawn[name].sort().values
            edge = rank[int(ours[name].sum()) - 1], rank[min(int(ours[name].sum()), len(rank) - 1)]
            distance = torch.stack([(drawn[name] - value).abs() for value in edge]).amin(0)
            assert bool((distance <= 3 * errors)[differing].all()), name
