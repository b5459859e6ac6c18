"""Three zones from one ranking: shares, floors, and what the cost model says about stand-ins."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.methods.values import Saliency
from hessprune.planning.implants import ImplantShare
from hessprune.planning.joint import select_jointly
from hessprune.planning.ranking import Ranking
from hessprune.planning.zones import Zones, select_zones
from hessprune.structure.groups import Groups
from tests.cases import Residual, image, make

X = image()
LOOSE = Ranking(min_kept_fraction=0.0)


def one_group() -> tuple[Groups, CostModel]:
    """Eight units between two fixed layers: costs add up, so that brute force knows every prefix."""
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3)), torch.zeros(1, 3, 6, 6)
    groups = hp.find_groups(net, x)
    return groups, CostModel(net, x, groups, {"0": None})


def values_of(seed: int) -> dict[str, Tensor]:
    return {"0": torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


def zones_for(seed: int, macs: float, share: float, ranking: Ranking = LOOSE) -> tuple[Zones, CostModel]:
    groups, costs = one_group()
    implants = ImplantShare(share=share, groups=("0",))
    budget = hp.Budget(macs=macs)
    return select_zones(groups, values_of(seed), costs, budget=budget, ranking=ranking, implants=implants), costs


@pytest.mark.parametrize("method", ["ranked", "joint"])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_implants_the_most_salient_of_those_that_leave(method: str, share: float) -> None:
    groups, costs = one_group()
    values = {"0": torch.tensor([3.0, 1, 4, 2, 8, 5, 7, 6]).double()}
    implants, budget = ImplantShare(share=share, groups=("0",)), hp.Budget(macs=0.5)
    if method == "joint":
        zones = select_jointly(
            groups, values, torch.zeros(8, 8), costs, budget=budget, ranking=LOOSE, implants=implants
        )
    else:
        zones = select_zones(groups, values, costs, budget=budget, ranking=LOOSE, implants=implants)
    removed, implanted = zones.removed["0"], zones.implanted["0"]
    assert len(implanted) == int(share * (len(removed) + len(implanted)) + 0.5)
    order = values["0"].argsort().tolist()
    assert set(removed) == set(order[: len(removed)])
    assert set(implanted) == set(order[len(removed) : len(removed) + len(implanted)])
    assert zones.spent(costs, "macs") <= 0.5 * costs.dense.macs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_no_shorter_prefix_meets_the_budget(seed: int, share: float) -> None:
    zones, costs = zones_for(seed, 0.5, share)
    leaving = len(zones.removed["0"]) + len(zones.implanted["0"])
    for fewer in range(leaving):
        small = int(share * fewer + 0.5)
        assert costs.spent("macs", {"0": fewer - small}, {"0": small}) > 0.5 * costs.dense.macs


@pytest.mark.parametrize("seed", range(3))
def test_without_interactions_joint_selection_takes_the_same_steps(seed: int) -> None:
    groups, costs = one_group()
    ranked, _ = zones_for(seed, 0.5, 0.4)
    joint = select_jointly(
        groups,
        values_of(seed),
        torch.zeros(8, 8),
        costs,
        budget=hp.Budget(macs=0.5),
        ranking=LOOSE,
        implants=ImplantShare(share=0.4, groups=("0",)),
    )
    assert (joint.removed, joint.implanted) == (ranked.removed, ranked.implanted)


def test_the_cost_of_a_stand_in_is_that_of_its_filter() -> None:
    _, costs = one_group()
    producer = 36 * 27
    for gone, small in itertools.product(range(4), range(5)):
        saved = small * producer * 8 / 9 + gone * (producer + 16 * 9 * 2)
        assert costs.spent("macs", {"0": gone}, {"0": small}) == pytest.approx(costs.dense.macs - saved)


def test_floors_count_whole_units() -> None:
    zones, _ = zones_for(1, 0.75, 0.2, Ranking(min_kept_fraction=0.5))
    assert len(zones.removed["0"]) + len(zones.implanted["0"]) <= 4


def test_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(hp.errors.BudgetError, match="Ask for at least macs="):
        zones_for(0, 0.01, 0.2, Ranking(min_kept_fraction=0.5))


def test_implants_stay_in_joint_plans_with_signed_interactions() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    size = sum(group.num_units for group in groups)
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = root @ root.T / size
    halves = (square.diagonal() / 2).split([group.num_units for group in groups])
    values = dict(zip([group.name for group in groups], halves, strict=True))
    saliency = Saliency(values, provenance={}, interactions=square)
    plan = hp.make_plan(model, groups, saliency, hp.Budget(macs=0.6), example_inputs=X, implant=0.3)
    assert plan.num_implanted
    assert plan.num_removed
    assert plan.cost_after.macs <= 0.6 * plan.cost_before.macs
    assert all(not set(units) & set(plan.removed[name]) for name, units in plan.implanted.items())
