"""Contractions in Einstein's notation cost what torch's own counter counts, down to one index."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hessprune as hp
from hessprune.costs.contractions import attention_flops, contraction_flops, grouped_flops, is_contraction

CASES = {
    "ij,jk->ik": [(2, 3), (3, 4)],
    "bij,bjk->bik": [(5, 2, 1), (5, 1, 4)],
    "nhid,nhjd->nhij": [(2, 3, 4, 5), (2, 3, 6, 5)],
    "ncij,nckl->nijkl": [(2, 1, 3, 4), (2, 1, 3, 4)],
    "oc,nchw->nohw": [(4, 3), (2, 3, 5, 5)],
    "ijk,jkl->il": [(2, 1, 3), (1, 3, 4)],
}


@pytest.mark.parametrize("equation", CASES)
def test_a_contraction_costs_what_is_counted(equation: str) -> None:
    left, right = CASES[equation]
    with FlopCounterMode(display=False) as counter:
        torch.einsum(equation, torch.ones(left), torch.ones(right))
    assert contraction_flops(equation, left, right) == counter.get_total_flops()


@pytest.mark.parametrize(
    "args", [("ii->i", 0), ("ij,jk,kl->il", 0, 0, 0), ("...j,jk->...k", 0, 0), ("ij,jk", 0, 0), ()]
)
def test_other_equations_are_none(args) -> None:
    assert not is_contraction(args)


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("nic,njc->nij", self.query(x), self.key(x)))


def test_one_unit_that_is_left_has_the_predicted_cost() -> None:
    model, x = Scores(), torch.randn(2, 5, 3)
    groups = hp.find_groups(model, x)
    plan = hp.make_plan(model, groups, {"query": torch.ones(2)}, hp.Budget(units=0.5), example_inputs=x)
    assert hp.cost(hp.apply_plan(model, plan), x) == plan.cost_after


def test_attention_costs_what_its_products_cost() -> None:
    q, k, v = (torch.ones(2, 3, size, width) for size, width in ((5, 4), (7, 4), (7, 6)))
    with FlopCounterMode(display=False) as counter:
        _ = (q @ k.mT) @ v
    assert attention_flops(q.shape, k.shape, v.shape, 0.0, out_val=None) == counter.get_total_flops()


def test_attention_is_counted_where_the_forward_needs_numbers() -> None:
    class Numbered(nn.TransformerEncoderLayer):
        def forward(self, x: Tensor) -> Tensor:
            if x.is_meta:
                raise NotImplementedError
            return super().forward(x)

    x = torch.randn(2, 5, 8)
    plain, numbered = (kind(8, 2, 16, batch_first=True).eval() for kind in (nn.TransformerEncoderLayer, Numbered))
    assert hp.cost(numbered, x) == hp.cost(plain, x)


@pytest.mark.parametrize(("rows", "matrices"), [((10, 48), (4, 48, 64)), ((4, 5, 48), (4, 48, 16))])
def test_groups_in_one_kernel_cost_what_they_cost_one_by_one(rows: tuple[int, ...], matrices: tuple[int, ...]) -> None:
    x, w = torch.ones(rows), torch.ones(matrices)
    parts = x.split([2, 3, 0, 5]) if x.dim() == 2 else x
    with FlopCounterMode(display=False) as counter:
        for part, matrix in zip(parts, w, strict=True):
            torch.mm(part, matrix)
    assert grouped_flops(rows, matrices) == counter.get_total_flops()


def test_a_layer_of_experts_is_counted() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 48, 64))

        def forward(self, x: Tensor) -> Tensor:
            return F.grouped_mm(x, self.weight, offs=torch.tensor([2, 5, 7, 10], dtype=torch.int32))

    assert hp.cost(Experts(), torch.ones(10, 48)).macs == 10 * 48 * 64
