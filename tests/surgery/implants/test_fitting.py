"""Fitted stand-ins against torch.linalg.lstsq, and what happens to the mean."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.planning.plan import Plan
from hessprune.planning.planner import plan_removing
from hessprune.surgery.compensation import compensate
from hessprune.surgery.implants.fitting import fit_stand_ins
from tests.cases import Residual, image, make

X = image(batch=30, size=9)
BATCHES = [(X[:20], torch.arange(20) % 4), (X[20:], torch.arange(10) % 4)]


class Net(nn.Module):
    def __init__(self, norm: bool, bias: bool) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=bias)
        self.norm, self.last = nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.conv(torch.relu(self.first(x))))).mean((2, 3)))


def plan_for(model: nn.Module, stand_ins: dict[str, int | None] | None = None) -> Plan:
    groups, facts = hp.find_groups(model, X), {"example_inputs": X, "provenance": {}}
    removed, implanted = {"first": (2,), "conv": (0,)}, {"conv": (4, 1)}
    return plan_removing(model, groups, removed, hp.Budget(macs=0.9), implanted=implanted, stand_ins=stand_ins, **facts)


def seen_and_wanted(model: nn.Module, taps: bool) -> tuple[Tensor, Tensor]:
    """Naive: surviving inputs at the centre, or all their patches, and the outputs of units 1 and 4 without bias."""
    with torch.no_grad():
        x = torch.relu(model.first(X))[:, [0, 1, 3, 4]]
        patches = F.unfold(x, 3, padding=1, stride=2).unflatten(1, (4, 9)).movedim(-1, 1).flatten(0, 1)
        y = F.conv2d(torch.relu(model.first(X)), model.conv.weight, None, 2, 1)[:, [1, 4]]
    return (patches[:, :, 4] if taps else patches.flatten(1)), y.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(("norm", "bias"), [(True, False), (False, True), (False, False)])
def test_one_by_one_filters_are_the_least_squares_solution(norm: bool, bias: bool) -> None:
    model = make(lambda: Net(norm, bias))
    plan = plan_for(model)
    pruned = hp.apply_plan(model, plan)
    fitted = fit_stand_ins(model, pruned, plan, BATCHES)
    x, y = seen_and_wanted(model, taps=True)
    centred = norm or bias
    a, b = (x - x.mean(0), y - y.mean(0)) if centred else (x, y)
    weight = torch.linalg.lstsq(a, b).solution
    stand_in = fitted.conv.parts[1]
    torch.testing.assert_close(stand_in.weight.flatten(1).T, weight, rtol=1e-4, atol=1e-6)
    shift = y.mean(0) - x.mean(0) @ weight
    if bias:
        torch.testing.assert_close(stand_in.bias - model.conv.bias[[1, 4]], shift, rtol=1e-4, atol=1e-6)
    if norm:
        moved = pruned.norm.running_mean - fitted.norm.running_mean
        torch.testing.assert_close(moved, torch.cat([torch.zeros(3).double(), shift]), rtol=1e-4, atol=1e-6)
    assert torch.equal(fitted.conv.parts[0].weight, pruned.conv.parts[0].weight)
    assert not torch.equal(stand_in.weight, pruned.conv.parts[1].weight)


def test_filters_of_a_given_rank_have_the_least_error_of_that_rank() -> None:
    model = make(lambda: Net(norm=True, bias=False))
    plan = plan_for(model, {"conv": 1})
    fitted = fit_stand_ins(model, hp.apply_plan(model, plan), plan, BATCHES)
    found = (fitted.conv.parts[1].weight.flatten(1) @ fitted.conv.base.weight.flatten(1)).T
    x, y = seen_and_wanted(model, taps=False)
    x, y = x - x.mean(0), y - y.mean(0)
    q, r = torch.linalg.qr(x)
    u, s, v = torch.linalg.svd(q.T @ y, full_matrices=False)
    best = torch.linalg.solve(r, u[:, :1] * s[:1] @ v[:1])
    assert torch.linalg.matrix_rank(found, rtol=1e-8) == 1
    torch.testing.assert_close((y - x @ found).square().sum(), (y - x @ best).square().sum(), rtol=1e-5, atol=0)


def test_filters_that_are_one_by_one_already_lose_nothing() -> None:
    """Also compensation, which fits stand-ins anew, then has nothing to mend."""
    model = make(Residual)
    with torch.no_grad():
        centre = model.inner[0].weight[:, :, 1, 1].clone()
        model.inner[0].weight.zero_()[:, :, 1, 1] = centre
    groups, facts = hp.find_groups(model, X), {"example_inputs": X, "provenance": {}}
    plan = plan_removing(model, groups, {}, hp.Budget(macs=0.9), implanted={"inner.0": (0, 2, 5)}, **facts)
    zero = hp.apply_plan(model, plan, start="zero")
    before = (zero(X) - model(X)).abs().max()
    teacher = [(x, model(x).detach()) for x, _ in BATCHES]
    fitted = fit_stand_ins(model, zero, plan, BATCHES)
    compensated = compensate(model, zero, plan, teacher, loss_fn=nn.MSELoss())
    for result, left in ((fitted, 1e-4), (compensated, 1e-1)):
        assert (result(X) - model(X)).abs().max() < left * before


def test_compensation_refits_kept_filters_and_stand_ins() -> None:
    model = make(Residual)
    groups, facts = hp.find_groups(model, X), {"example_inputs": X, "provenance": {}}
    removed, implanted = {"stem.0": (1,)}, {"stem.0": (0, 3), "inner.0": (2,)}
    plan = plan_removing(model, groups, removed, hp.Budget(macs=0.9), implanted=implanted, **facts)
    fitted = fit_stand_ins(model, hp.apply_plan(model, plan), plan, BATCHES)
    teacher = [(x, model(x).detach()) for x, _ in BATCHES]
    repaired = compensate(model, fitted, plan, teacher, loss_fn=nn.MSELoss())
    errors = [
        float((each(X) - model(X)).detach().square().mean()) for each in (hp.apply_plan(model, plan), fitted, repaired)
    ]
    assert errors[2] < min(errors[:2])
    for name, before in fitted.named_parameters():
        if ".parts." in name and "weight" in name and "stem" not in name:
            assert not torch.equal(before, repaired.get_parameter(name)), name


def test_one_shot_batches_are_refused() -> None:
    model = make(Residual)
    groups, facts = hp.find_groups(model, X), {"example_inputs": X, "provenance": {}}
    plan = plan_removing(model, groups, {}, hp.Budget(macs=0.9), implanted={"inner.0": (0,)}, **facts)
    with pytest.raises(hp.errors.DataError, match="must be re-iterable"):
        fit_stand_ins(model, hp.apply_plan(model, plan), plan, iter(BATCHES))
