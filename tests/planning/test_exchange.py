"""The joint selection against a transcription that asks the cost model about every unit and forms every sum anew."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.foundation.symmetric import Factor, SymmetricMatrix, WholeMatrix
from hessprune.methods.values import Saliency
from hessprune.planning import exchange, joint
from hessprune.planning.joint import select_jointly
from hessprune.planning.ranking import Ranking
from hessprune.structure.groups import Groups
from tests.cases import ChunkCat, Concat, Grouped, Inverted, Residual, image, make

X = image()
LOOSE = Ranking(min_kept_fraction=0.0)
CASES = [Residual, Concat, ChunkCat, Grouped, Inverted]


class Heads(nn.Module):
    """Attention over positions, whose heads may go, and two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 8, 2, 2), nn.ModuleList(nn.Linear(8, 18) for _ in range(3))
        self.out, self.up, self.head = nn.Linear(18, 10), nn.Linear(10, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(2, (-1, 3)).transpose(1, 2) for layer in self.qkv)
        x = ((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.head(self.up(self.out(x).relu()).relu().mean(1))


def features(groups: Groups, rank: int = 20) -> Tensor:
    size = sum(group.num_units for group in groups)
    generator = torch.Generator().manual_seed(size)
    phi = torch.randn(rank, size, dtype=torch.float64, generator=generator) / rank**0.5
    return phi * torch.rand(size, dtype=torch.float64, generator=generator)


def by_group(values: Tensor, groups: Groups) -> dict[str, Tensor]:
    parts = values.split([group.num_units for group in groups])
    return {group.name: part for group, part in zip(groups, parts, strict=True)}


def transcribed(groups: Groups, alone: Tensor, b: Tensor, costs: CostModel, budget: hp.Budget) -> dict[str, set[int]]:
    """Remove the unit with the least increase per MAC saved, all counted anew for every unit; then exchange."""
    units = [(group, unit) for group in groups for unit in range(group.num_units)]
    gone: list[int] = []

    def increase(chosen: list[int]) -> float:
        total = b[chosen][:, chosen]
        return float(alone[chosen].sum() + (total.sum() - total.diagonal().sum()) / 2)

    def macs(chosen: list[int]) -> int:
        names = [units[index][0].name for index in chosen]
        return costs({name: names.count(name) for name in names}).macs

    def last_of_its_group(index: int) -> bool:
        return sum(units[other][0] is units[index][0] for other in gone) + 1 == units[index][0].num_units

    while macs(gone) > (budget.share or 1) * costs.dense.macs:
        free = [index for index in range(len(units)) if index not in gone and not last_of_its_group(index)]
        price = [
            (increase([*gone, index]) - increase(gone)) / max(macs(gone) - macs([*gone, index]), 1e-12)
            for index in free
        ]
        gone.append(free[int(np.argmin(price))])
    improved = True
    while improved:
        improved = False
        for group in groups:
            inside = [index for index in gone if units[index][0] is group]
            kept = [i for i, (owner, _) in enumerate(units) if owner is group and i not in gone]
            trials = [
                [other for other in gone if other != back] + [out] for back, out in itertools.product(inside, kept)
            ]
            best = min(trials, key=increase, default=gone)
            if increase(best) < increase(gone) - 1e-12:
                gone, improved = best, True
    return {group.name: {units[i][1] for i in gone if units[i][0] is group} for group in groups}


@pytest.mark.parametrize("case", [*CASES, Heads])
@pytest.mark.parametrize("form", ["dense", "factor", "absolute"])
def test_all_forms_remove_what_the_transcription_removes(case: type[nn.Module], form: str) -> None:
    model = make(case)
    groups, budget = hp.find_groups(model, X), hp.Budget(macs=0.6)
    phi, costs = features(groups), CostModel(model, X, groups)
    found: SymmetricMatrix = WholeMatrix(phi.T @ phi) if form == "dense" else Factor(phi, form == "absolute")
    q = found.dense()
    saliency = by_group(q.diagonal() / 2, groups)
    chosen = select_jointly(groups, saliency, found, costs, budget=budget, ranking=LOOSE).removed
    expected = transcribed(groups, q.diagonal() / 2, q, costs, budget)
    assert {name: set(units) for name, units in chosen.items()} == expected


@pytest.mark.parametrize("case", [*CASES, Heads])
def test_savings_follow_the_counts_of_coupled_groups(case: type[nn.Module]) -> None:
    """What a unit saves depends on what left elsewhere, exactly: residuals, concatenation, grouped layers, heads."""
    model = make(case)
    groups = hp.find_groups(model, X)
    costs, generator = CostModel(model, X, groups), np.random.default_rng(0)
    dense = costs.saved_next("macs")
    moved = set()
    for _ in range(5):
        counts = {group.name: int(generator.integers(group.num_units)) for group in groups}
        for quantity in ("macs", "params"):
            saved = costs.saved_next(quantity, counts)
            for group in groups:
                more = {**counts, group.name: counts[group.name] + 1}
                exact = getattr(costs(counts), quantity) - getattr(costs(more), quantity)
                assert saved[group.name] == pytest.approx(exact, abs=1)
                if quantity == "macs" and saved[group.name] != dense[group.name]:
                    moved.add(group.name)
    assert moved


def test_a_removal_makes_what_reads_it_cheaper() -> None:
    """In one block, a unit of the inner group saves less once channels of the outer one are gone, and counts do so."""
    model = make(Residual)
    groups = hp.find_groups(model, X)
    costs = CostModel(model, X, groups)
    inner, outer = costs.saved_next("macs")["inner.0"], "stem.0"
    assert costs.saved_next("macs", {outer: 1})["inner.0"] < inner


@pytest.mark.parametrize("case", [*CASES, Heads])
def test_the_predicted_cost_is_the_counted_one(case: type[nn.Module]) -> None:
    model = make(case)
    groups = hp.find_groups(model, X)
    phi = features(groups)
    values = by_group(phi.square().sum(0) / 2, groups)
    saliency = Saliency(values, provenance={}, interactions=Factor(phi))
    plan = hp.make_plan(model, groups, saliency, hp.Budget(macs=0.6), example_inputs=X)
    counted = hp.cost(hp.apply_plan(model, plan), X)
    assert plan.num_removed
    assert plan.cost_after == counted
    assert counted.macs <= 0.6 * plan.cost_before.macs


@pytest.mark.parametrize("implant", [0.3, hp.Implant(share=0.7)])
def test_implants_weigh_a_factor_as_they_weigh_its_matrix(implant: float | hp.Implant) -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    phi = features(groups)
    values = by_group(phi.square().sum(0) / 2, groups)
    plans = [
        hp.make_plan(
            model,
            groups,
            Saliency(values, provenance={}, interactions=interactions),
            hp.Budget(macs=0.75),
            example_inputs=X,
            implant=implant,
        )
        for interactions in (phi.T @ phi, Factor(phi))
    ]
    assert plans[0].num_implanted
    assert (plans[0].removed, plans[0].implanted) == (plans[1].removed, plans[1].implanted)


def chain(width: int = 40) -> tuple[nn.Module, Groups, CostModel]:
    net = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    groups = hp.find_groups(net, torch.zeros(1, 3))
    return net, groups, CostModel(net, torch.zeros(1, 3), groups)


@pytest.mark.parametrize("held", [0, 1, 16])
@pytest.mark.parametrize("batch", [1, 3, 128])
def test_how_many_rows_are_fetched_changes_nothing(held: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, groups, costs = chain()
    phi = features(groups)
    values = by_group(phi.square().sum(0) / 2, groups)
    monkeypatch.setattr(joint, "HELD", held)
    monkeypatch.setattr(Factor, "batch", batch)
    budget = hp.Budget(params=0.3)
    got = select_jointly(groups, values, Factor(phi), costs, budget=budget, ranking=Ranking())
    expected = select_jointly(groups, values, phi.T @ phi, costs, budget=budget, ranking=Ranking())
    assert got.removed == expected.removed


def test_single_precision_ends_with_nearly_the_same_estimate() -> None:
    _, groups, costs = chain()
    phi = features(groups)
    values = by_group(phi.square().sum(0) / 2, groups)
    estimates = []
    for interactions in (phi.T @ phi, Factor(phi.float())):
        chosen = select_jointly(
            groups, values, interactions, costs, budget=hp.Budget(params=0.3), ranking=Ranking()
        ).removed
        every = torch.tensor([unit + 40 * number for number, g in enumerate(groups) for unit in chosen[g.name]])
        estimates.append(float(phi[:, every].sum(1).square().sum() / 2))
    assert estimates[1] == pytest.approx(estimates[0], rel=1e-4)


@pytest.mark.parametrize("single", [False, True])
def test_exchanges_end_where_increases_cancel(single: bool) -> None:
    """Features of two directions, each with its negative: removals cost nothing together, and only rounding is left."""
    _, groups, costs = chain()
    half = features(groups, 2)[:, ::2].repeat_interleave(2, 1)
    phi = half * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(40)
    values = by_group(phi.square().sum(0) / 2, groups)
    found = Factor(phi.float() if single else phi)
    chosen = select_jointly(groups, values, found, costs, budget=hp.Budget(params=0.3), ranking=Ranking()).removed
    every = torch.tensor([unit + 40 * number for number, g in enumerate(groups) for unit in chosen[g.name]])
    assert float(phi[:, every].sum(1).square().sum()) < 1e-6 * float(phi[:, every].square().sum())


def test_large_groups_exchange_their_likeliest_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small pool the estimate still falls, and no cost changes."""
    _, groups, costs = chain()
    phi = features(groups)
    q, values = phi.T @ phi, by_group(phi.square().sum(0) / 2, groups)
    estimates, counts = [], []
    for pool in (0, 5, 1024):
        monkeypatch.setattr(exchange, "POOL", pool)
        chosen = select_jointly(groups, values, q, costs, budget=hp.Budget(params=0.3), ranking=Ranking()).removed
        every = torch.tensor([unit + 40 * number for number, g in enumerate(groups) for unit in chosen[g.name]])
        estimates.append(float(q[every][:, every].sum() / 2))
        counts.append([len(units) for units in chosen.values()])
    assert estimates[0] > estimates[1] >= estimates[2]
    assert counts[0] == counts[1] == counts[2]


def test_ignored_groups_are_left_out_of_a_factor() -> None:
    net, groups, _ = chain()
    phi = features(groups)
    values = by_group(phi.square().sum(0) / 2, groups)
    plans = [
        hp.make_plan(
            net,
            groups,
            Saliency(values, provenance={}, interactions=interactions),
            hp.Budget(params=0.6),
            example_inputs=torch.zeros(1, 3),
            ranking=Ranking(ignore=("0",)),
        )
        for interactions in (phi.T @ phi, Factor(phi))
    ]
    assert plans[0].removed == plans[1].removed
    assert plans[0].removed["0"] == ()
