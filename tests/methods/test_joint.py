"""The joint criterion: interactions of gates against dense derivatives, and elimination where survivors take over."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.symmetric import Factor
from hessprune.methods.joint import rising_steps
from tests.cases import AWKWARD, ChunkCat, Grouped, Inverted, Plain, Residual, Transposed, UnknownOperator, image, make
from tests.methods.gating import Y, flat, gated, gauss_newton

JOINT, SOSPI = hp.Joint(precision="fp64", refit=False), hp.SOSPI(precision="fp64")
CLASSIFIERS = [case for case in AWKWARD if case not in (Transposed, UnknownOperator) and case.__name__ != "Conv1d"]


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.__name__)
def test_joint_interactions_are_the_dense_gauss_newton_form(case: type[nn.Module]) -> None:
    model, x = make(case), image(batch=3)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x[:1], Y[:1]), (x[1:], Y[1:])], JOINT)
    expected = gauss_newton(*gated(model, groups, x, "consumer"))
    torch.testing.assert_close(found.interactions, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(flat(found), expected.diagonal() / 2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("method", [JOINT, SOSPI], ids=str)
@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped, Inverted])
def test_a_factor_of_all_rows_is_the_matrix_and_gives_its_plan(case: type[nn.Module], method: hp.Method) -> None:
    model, x = make(case), image(batch=3)
    groups, batches = hp.find_groups(model, x), [(x[:1], Y[:1]), (x[1:], Y[1:])]
    whole = hp.saliency(model, groups, batches, method)
    factor = hp.saliency(model, groups, batches, replace(method, interaction_rows=100))
    assert isinstance(factor.interactions, Factor)
    assert factor.interactions.absolute == (method == SOSPI)
    assert (factor.provenance["interaction_rows"], factor.provenance["interactions_dropped"]) == (9, 0)
    assert "interaction_rows" not in whole.provenance
    torch.testing.assert_close(factor.interactions.dense(), whole.interactions, rtol=1e-9, atol=1e-14)
    assert torch.equal(flat(factor), flat(whole))
    plans = [
        hp.make_plan(model, groups, found, hp.Budget(macs=0.5), example_inputs=x[:1]).removed
        for found in (whole, factor)
    ]
    assert plans[0] == plans[1]


def test_a_short_factor_says_what_it_leaves_out_and_keeps_the_diagonal() -> None:
    model, x = make(Residual), image(batch=30)
    groups, batches = hp.find_groups(model, x), [(x, Y.repeat(10))]
    whole = hp.saliency(model, groups, batches, JOINT)
    short = hp.saliency(model, groups, batches, replace(JOINT, interaction_rows=12))
    assert isinstance(whole.interactions, Tensor)
    assert isinstance(short.interactions, Factor)
    error = whole.interactions - short.interactions.dense()
    share = float(error.trace() / whole.interactions.trace())
    assert 0 < share < 0.5
    assert short.provenance["interactions_dropped"] == pytest.approx(share, rel=1e-9)
    assert float(torch.linalg.eigvalsh(error)[0]) > -1e-10
    torch.testing.assert_close(flat(short), flat(whole), rtol=1e-12, atol=0)


def test_on_a_linear_network_with_squared_loss_the_prediction_is_the_loss() -> None:
    """Where the Gauss–Newton form is the loss itself, joint saliencies predict the increase of any removal exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = model(x).detach()  # at the minimum: the gradient is zero
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x, y)], JOINT, loss_fn=nn.MSELoss())
    plan = hp.make_plan(model, groups, found, hp.Budget(params=0.5), example_inputs=x)
    removed = torch.tensor(plan.removed["0"])
    predicted = 0.5 * found.interactions[removed][:, removed].sum()
    measured = F.mse_loss(hp.apply_plan(model, plan)(x), y)
    torch.testing.assert_close(predicted, measured.detach(), rtol=1e-10, atol=0)


def test_units_that_others_can_replace_go_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double().requires_grad_(False)
    model[0].weight[5] = model[0].weight[0] + model[0].weight[1]  # loud, and of no use
    model[0].bias[5] = 7
    model[1].weight[:, 5] = torch.tensor([10.0, -10.0, 0.0])
    x = torch.randn(64, 6, dtype=torch.float64)
    groups = hp.find_groups(model, x)
    batches = [(x, torch.arange(64) % 3)]
    compensated = hp.saliency(model, groups, batches, "joint")[groups[0]]
    plain = hp.saliency(model, groups, batches, hp.Joint(refit=False))[groups[0]]
    assert compensated.argmin() in (0, 1, 5)
    assert float(compensated.min()) < 1e-3 * float(compensated.median())
    assert plain.argmax() == 5


def test_ranking_by_value_follows_the_order_of_elimination() -> None:
    steps = torch.tensor([1.0, 3.0, 2.0, 0.0, 5.0], dtype=torch.float64)
    rising = rising_steps(steps)
    torch.testing.assert_close(rising, torch.tensor([1.0, 5 / 3, 5 / 3, 5 / 3, 5.0]).double(), rtol=1e-6, atol=0)
    assert bool((rising.diff() > 0).all())
    assert bool((rising_steps(torch.zeros(3).double()).diff() > 0).all())


def test_a_method_follows_what_becomes_of_the_survivors() -> None:
    assert hp.Joint().with_refit(False) == hp.Joint(refit=False)
    assert hp.Joint(refit=True).with_refit(False) == hp.Joint(refit=True)
    assert hp.HAP().with_refit(False) == hp.HAP()
    with pytest.raises(hp.errors.ArgumentError, match=r"`temperature` must be a number from 0\.001 to 1000, got 0"):
        hp.Joint(temperature=0)


def test_batching_does_not_matter_where_samples_have_no_label() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 20), nn.Unflatten(1, (5, 4))).double()
    x, y = torch.randn(64, 6).double(), torch.randint(0, 5, (64, 4))
    y[::3] = -100
    groups = hp.find_groups(net, x[:1])

    def scores(size: int) -> torch.Tensor:
        batches = list(zip(x.split(size), y.split(size), strict=True))
        return hp.saliency(net, groups, batches, hp.Joint(precision="fp64"), loss_fn=F.cross_entropy)["0"]

    for size in (32, 16, 7):
        torch.testing.assert_close(scores(size), scores(64), rtol=1e-9, atol=0)
