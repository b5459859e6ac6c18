"""HAP's saliency against the dense Hessian, unit by unit, coupled producers included."""

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.padding import ChannelPad
from tests.cases import ChunkCat, Grouped, Plain, Residual, image, make

X = image(size=4, batch=3)
BATCHES = [(X[:2], torch.tensor([0, 2])), (X[2:], torch.tensor([1]))]


def dense_trace(model: nn.Module, param: str, dim: int, positions: tuple[int, ...]) -> float:
    """Sum of second derivatives of the mean loss over the entries at `positions`, by double backward."""
    x, y = torch.cat([b for b, _ in BATCHES]), torch.cat([t for _, t in BATCHES])

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, {param: weight}, (x,)), y)

    weight = model.get_parameter(param).detach()
    hessian = torch.func.hessian(loss)(weight).reshape(weight.numel(), weight.numel())
    diagonal = hessian.diagonal().view(weight.shape)
    return float(diagonal.detach().index_select(dim, torch.tensor(positions)).sum())


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped])
def test_trace_and_saliency_against_the_dense_hessian(case: type[nn.Module]) -> None:
    model = make(case)
    groups = hp.find_groups(model, X)
    trace = hp.hessian_trace(model, groups, BATCHES, precision="fp64")
    saliency = hp.saliency(model, groups, BATCHES, hp.HAP(precision="fp64"))
    assert trace.kind == "hessian"
    for group in groups[:2]:
        for unit in (0, group.num_units - 1):
            expected_trace = expected_saliency = 0.0
            for piece in group.slices_with_role("producer"):
                value = dense_trace(model, piece.param, piece.dim, piece.index[unit])
                weight = (
                    model.get_parameter(piece.param).detach().index_select(piece.dim, torch.tensor(piece.index[unit]))
                )
                expected_trace += value
                expected_saliency += value * float(weight.square().sum()) / (2 * weight.numel())
            assert float(trace.values[group][unit]) == pytest.approx(expected_trace, rel=1e-10)
            assert float(saliency[group.name][unit]) == pytest.approx(expected_saliency, rel=1e-10)


def test_units_that_nothing_produces_have_no_curvature() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pad = nn.Conv2d(3, 4, 1), ChannelPad(1, 1)
            self.b, self.head = nn.Conv2d(6, 4, 1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(self.pad(self.a(x)))).mean((2, 3)))

    model = make(Padded)
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, BATCHES)
    pads = next(group for group in groups if not group.slices_with_role("producer"))
    assert values[pads].eq(0).all()
    plan = hp.make_plan(model, groups, values, hp.Budget(macs=0.8), example_inputs=X)
    assert hp.apply_plan(model, plan).pad.before == 1 - len([
        u for u in plan.removed[pads.name] if pads.literals[0].counts[u]
    ])
