"""The theorems of the library, for every network: slicing equals masking, predicted cost is counted cost."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.foundation.trees import tensors_in
from hessprune.planning.planner import make_plan
from hessprune.planning.ranking import Ranking
from hessprune.structure.find import find_groups
from hessprune.surgery.apply import apply_plan
from hessprune.surgery.slicing import mask_units
from tests.cases import AWKWARD, PAPERS, image, make, paper_model
from tests.structure.layouts import LAYOUTS
from tests.structure.nets import NETS

TOLERANCE = 1e-10  # float64, relative to the largest output; only the order of summation differs


def check_model(model: nn.Module, x: Tensor, fractions: tuple[float, ...]) -> None:
    groups = find_groups(model, x)
    costs = CostModel(model, x, groups)
    least = costs({group.name: group.num_units - 1 for group in groups}).params / costs.dense.params
    for number, fraction in enumerate(fractions):
        generator = torch.Generator().manual_seed(number)
        saliency = {group.name: torch.rand(group.num_units, generator=generator) for group in groups}
        budget = Budget(params=least + fraction * (1 - least) + 1e-9)
        plan = make_plan(model, groups, saliency, budget, example_inputs=x, ranking=Ranking(min_kept_fraction=0.0))
        assert plan.num_removed > 0
        pruned = apply_plan(model, plan)
        masked = copy.deepcopy(model)
        mask_units(masked, plan.groups, plan.removed)
        with torch.no_grad():
            outputs = list(zip(tensors_in(masked(x)), tensors_in(pruned(x)), strict=True))
        for expected, actual in outputs:
            torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * max(1.0, expected.abs().max().item()))
        assert sum(parameter.numel() for parameter in pruned.parameters()) == plan.cost_after.params
        assert counted_macs(pruned, x) == plan.cost_after.macs


def counted_macs(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("case", [*AWKWARD, *NETS, *LAYOUTS], ids=lambda case: case.__name__)
def test_slicing_equals_masking_on_awkward_networks(case: type[nn.Module]) -> None:
    check_model(make(case), image(), (0.9, 0.5, 0.1))


DEEP = ("resnet32", "resnet44", "resnet56", "resnet110", "vgg19-bn", "wrn28-8")


@pytest.mark.parametrize("name", [pytest.param(p, marks=[pytest.mark.slow] if p in DEEP else []) for p in PAPERS])
def test_slicing_equals_masking_on_the_papers_networks(name: str) -> None:
    model, x = paper_model(name)
    check_model(model, x, (0.7, 0.3) if name != "wrn28-8" else (0.5,))
