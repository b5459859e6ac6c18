"""Layers that read the same for all samples, such as a table of relative positions: their units stay whole."""

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.batches import Rereadable
from hessprune.methods.reach import sampled_groups

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(24) % 2)]


class Positions(nn.Module):
    """Makes something of a table beside the samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(1, 8))
        self.make, self.read = nn.Linear(8, 6), nn.Linear(6, 2)
        self.wide, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(x).relu()) + self.read(self.make(self.table).relu())


NET = Positions().eval()
GROUPS = hp.find_groups(NET, X[:1])


def test_groups_of_a_table_are_known() -> None:
    assert {group.name for group in GROUPS} >= {"make", "wide"}
    assert [group.name for group in sampled_groups(NET, GROUPS, Rereadable(BATCHES))] == ["wide"]
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = hp.find_groups(plain, X[:1])
    assert sampled_groups(plain, groups, Rereadable(BATCHES)) == [*groups]


@pytest.mark.parametrize("method", ["joint", "joint(refit=false)", "hap", "taylor", "sosp-h", "sosp-i", "nvit"])
def test_every_method_scores_the_other_groups_and_says_so(method: str) -> None:
    found = hp.saliency(NET, GROUPS, BATCHES, method=method)
    assert "make" in found.provenance["unseen"]
    assert float(found["make"].min()) == float(found["wide"].max())
    alone = hp.saliency(NET, [group for group in GROUPS if group.name == "wide"], BATCHES, method=method)
    torch.testing.assert_close(found["wide"], alone["wide"])


def test_statistics_and_refits_leave_them_out() -> None:
    stats = hp.measure(NET, X[:1], BATCHES)
    assert "unseen" in stats.saliencies["joint(refit=True)"].provenance
    result = hp.prune(NET, X[:1], BATCHES, budget=hp.Budget(params=0.9), stats=stats)
    assert {name for name, units in result.plan.removed.items() if units} == {"wide"}


def test_traces_name_the_layers() -> None:
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"weights that read samples, got 'make.weight'.*ignore="):
        hp.hessian_trace(NET, [group for group in GROUPS if group.name == "make"], BATCHES)


class Auxiliary(nn.Module):
    """Has a head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head, self.extra = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.enter(x).relu()
        return (self.head(hidden), self.extra(hidden)) if self.training else self.head(hidden)


@pytest.mark.parametrize("method", ["joint", "hap", "sosp-h", "sosp-i", "taylor", "nvit", "magnitude"])
def test_heads_of_training_alone_follow(method: str) -> None:
    pruned = hp.prune(Auxiliary().eval(), X, BATCHES, budget=hp.Budget(macs=0.5), method=method)
    first, second = pruned.model.train()(X)
    assert (first.shape, second.shape) == ((24, 2), (24, 3))


class ByHand(nn.Module):
    """Multiplies by the weights of a layer as no linear map does, instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.wide, self.last = (nn.Linear(*size) for size in ((4, 8), (8, 2), (4, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        made = torch.einsum("ni,oi->no", x, self.up.weight).relu()
        return self.last(self.wide(x).relu()) + torch.einsum("ni,oi->no", made, self.down.weight)


@pytest.mark.parametrize("method", ["joint", "hap", "sosp-i", "taylor"])
def test_units_of_weights_that_no_layer_multiplies_by_stay_and_are_named(method: str) -> None:
    pruned = hp.prune(ByHand(), X, BATCHES, budget=hp.Budget(macs=0.8), method=method)
    assert pruned.plan.provenance["unseen"] == ["up"]
    assert pruned.model.up.out_features == 8 > pruned.model.wide.out_features


class Embedded(nn.Module):
    """Two tables beside each other, as of users and items, and a network on top."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.wide, self.last = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        both = torch.cat([self.users(ids[:, 0]), self.items(ids[:, 1])], 1)
        return self.last(self.wide(both).relu())


@pytest.mark.parametrize("method", ["joint", "taylor", "hap", "sosp-h", "sosp-i", "nvit"])
def test_embeddings_are_scored_or_stay_whole_by_name(method: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (32, 2))
    result = hp.prune(Embedded(), ids[:1], [(ids, torch.arange(32) % 3)], budget=hp.Budget(macs=0.5), method=method)
    stay = [] if method in ("joint", "taylor") else ["items", "users"]
    assert result.plan.provenance.get("unseen", []) == stay
    assert result.plan.removed["wide"]
    assert all(not result.plan.removed[name] for name in stay)
