"""A loader that shuffles: every pass of one call sees one order, and the caller's random state is untouched."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hessprune.curvature import block_traces
from hessprune.curvature.elimination_path import eliminated_losses
from hessprune.curvature.gate_interactions import gate_interactions
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.problem import Effort, pose
from hessprune.curvature.softening import softened
from hessprune.objectives.given import GivenLoss
from tests.curvature.nets import Residual, batches_of, build, rows

X, Y = batches_of((40,))[0]


def loader(own):
    generator = torch.Generator().manual_seed(3) if own else None
    return DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, generator=generator)


def reading(model):
    return {"conv1": [rows(model, "conv2.weight", 0)], "stem": [rows(model, "conv1.weight", 1)]}


CALLS = {
    "exact": lambda m, data: block_traces(m, reading(m), data, estimator="exact").values,
    "rademacher": lambda m, data: block_traces(m, reading(m), data, estimator="rademacher").values,
    "hutchinson": lambda m, data: (
        block_traces(m, reading(m), data, estimator="hutchinson", options=TraceOptions(num_probes=4)).values
    ),
    "gates": lambda m, data: {"diagonal": gate_interactions(m, reading(m), data).diagonal},
    "elimination": lambda m, data: {
        k: p.loss for k, p in eliminated_losses(m, {"stem": reading(m)["stem"]}, data).items()
    },
    "softening": lambda m, data: {"temperature": torch.tensor(softened(m, data, GivenLoss(loss_fn=None))[1])},
}


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
@pytest.mark.parametrize("name", CALLS)
def test_random_state_is_untouched_and_results_repeat(name, own):
    model, data = build(Residual), loader(own)
    torch.manual_seed(11)
    state, inner = torch.get_rng_state(), data.generator.get_state() if own else torch.zeros(1)
    first = CALLS[name](model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(data.generator.get_state() if own else torch.zeros(1), inner)
    torch.rand(3)  # what happens between calls does not matter
    again = CALLS[name](model, data)
    assert all(torch.equal(value, again[key]) for key, value in first.items())


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_two_passes_see_one_order(own):
    model = build(Residual)
    effort = Effort(estimator="exact", precision="fp64", options=TraceOptions())
    problem = pose(model, reading(model), loader(own), loss_fn=None, effort=effort)
    first, second = (torch.cat([x for _, x, _ in problem.each_batch("test")]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, X)
