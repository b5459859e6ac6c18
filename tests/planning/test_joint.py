"""The greedy selection against brute force, and what signed interactions are for."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError, BudgetError
from hessprune.foundation.symmetric import Factor
from hessprune.planning.joint import select_jointly
from hessprune.planning.ranking import Ranking
from hessprune.structure.find import find_groups
from hessprune.structure.groups import Groups

LOOSE = Ranking(min_kept_fraction=0.0, per_cost=False)


def two_layers() -> tuple[Groups, CostModel]:
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.zeros(1, 3)
    groups = find_groups(net, x)
    return groups, CostModel(net, x, groups)


def random_problem(seed: int, rank: int = 30) -> tuple[dict[str, Tensor], Tensor]:
    features = torch.randn(rank, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    features[:, 2] *= 0.3
    features[:, 3] = -features[:, 2] + 0.01 * features[:, 3]  # two units that cancel
    q = features.T @ features / rank
    return {"0": q.diagonal()[:6] / 2, "2": q.diagonal()[6:] / 2}, q


def increase(q: Tensor, chosen: set[int]) -> float:
    index = torch.tensor(sorted(chosen), dtype=torch.int64)
    return 0.5 * float(q[index][:, index].sum())


def flat(removed: dict[str, tuple[int, ...]]) -> set[int]:
    return set(removed["0"]) | {unit + 6 for unit in removed["2"]}


@pytest.mark.parametrize("seed", range(8))
def test_greedy_with_swaps_against_brute_force(seed: int) -> None:
    groups, costs = two_layers()
    saliency, q = random_problem(seed)
    chosen = flat(select_jointly(groups, saliency, q, costs, budget=Budget(params=0.5), ranking=LOOSE).removed)
    in_first = len([unit for unit in chosen if unit < 6])
    same_cost = (
        set(a) | set(b)
        for a in itertools.combinations(range(6), in_first)
        for b in itertools.combinations(range(6, 12), len(chosen) - in_first)
    )
    best = min(increase(q, candidate) for candidate in same_cost)
    alone = increase(q, set(q.diagonal().argsort()[: len(chosen)].tolist()))
    assert increase(q, chosen) <= 1.25 * best + 1e-12
    assert increase(q, chosen) <= alone + 1e-12


def test_units_that_cancel_go_together() -> None:
    groups, costs = two_layers()
    saliency, q = random_problem(0)
    chosen = flat(select_jointly(groups, saliency, q, costs, budget=Budget(params=0.8), ranking=LOOSE).removed)
    assert {2, 3} <= chosen


def test_without_interactions_it_is_the_ranking() -> None:
    groups, costs = two_layers()
    saliency, _ = random_problem(1)
    removed = select_jointly(
        groups, saliency, torch.zeros(12, 12), costs, budget=Budget(params=0.5), ranking=LOOSE
    ).removed
    both = torch.cat([saliency["0"], saliency["2"]])
    assert flat(removed) == set(both.argsort()[: len(flat(removed))].tolist())


def test_per_cost_prefers_units_that_save_more() -> None:
    groups, costs = two_layers()
    flat_saliency = {"0": torch.ones(6), "2": torch.ones(6)}
    ranking = Ranking(min_kept_fraction=0.0)
    removed = select_jointly(
        groups, flat_saliency, torch.zeros(12, 12), costs, budget=Budget(params=0.9), ranking=ranking
    ).removed
    saved = costs.saved_next("params")
    assert saved["0"] > saved["2"]
    assert len(removed["0"]) > len(removed["2"])


def test_floors_rounding_and_reach() -> None:
    groups, costs = two_layers()
    saliency, q = random_problem(2)
    removed = select_jointly(groups, saliency, q, costs, budget=Budget(params=0.6), ranking=Ranking(round_to=2)).removed
    assert all(len(units) % 2 == 0 for units in removed.values())
    with pytest.raises(BudgetError, match="must be reachable"):
        select_jointly(groups, saliency, q, costs, budget=Budget(params=0.2), ranking=Ranking(min_kept_fraction=0.5))


def test_wrong_interactions() -> None:
    groups, costs = two_layers()
    saliency, q = random_problem(3)
    with pytest.raises(ArgumentError, match=r"must have shape \(12, 12\), one row per unit, got \(3, 3\)"):
        select_jointly(groups, saliency, q[:3, :3], costs, budget=Budget(params=0.5), ranking=LOOSE)
    with pytest.raises(ArgumentError, match="must be finite"):
        select_jointly(groups, saliency, q * np.nan, costs, budget=Budget(params=0.5), ranking=LOOSE)
    with pytest.raises(ArgumentError, match=r"must have shape \(12, 12\), one row per unit, got \(5, 5\)"):
        select_jointly(groups, saliency, Factor(q[:, :5]), costs, budget=Budget(params=0.5), ranking=LOOSE)
    with pytest.raises(ArgumentError, match="must be finite"):
        select_jointly(groups, saliency, Factor(q * np.inf), costs, budget=Budget(params=0.5), ranking=LOOSE)


def test_saved_next_is_the_exact_difference() -> None:
    _, costs = two_layers()
    gone = {"0": 2, "2": 3}
    saved = costs.saved_next("params", gone)
    assert saved["0"] == costs(gone).params - costs({"0": 3, "2": 3}).params
    assert saved["2"] == costs(gone).params - costs({"0": 2, "2": 4}).params
