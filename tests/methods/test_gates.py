"""Criteria from gates against dense derivatives in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.symmetric import Factor
from hessprune.methods import Settings
from hessprune.operators.leaves import Role
from hessprune.structure.groups import Group
from tests.cases import (
    AWKWARD,
    ChunkCat,
    Flatten,
    Grouped,
    Inverted,
    Norms,
    Plain,
    Residual,
    Transposed,
    UnknownOperator,
    image,
    make,
)

Y = torch.tensor([0, 2, 1])
SETTINGS = Settings(precision="fp64", compensated=False)
CLASSIFIERS = [case for case in AWKWARD if case not in (Transposed, UnknownOperator) and case.__name__ != "Conv1d"]


def gated(model: nn.Module, groups: tuple[Group, ...], x: Tensor, role: Role):
    """The model's logits as a function of one gate per unit, multiplied onto the slices of one role."""
    names = sorted({p.param for g in groups for p in g.slices_with_role(role)})
    base = {name: model.get_parameter(name).detach() for name in names}
    sizes = [g.num_units for g in groups]

    def logits(gates: Tensor) -> Tensor:
        params = dict(base)
        for group, own in zip(groups, gates.split(sizes), strict=True):
            for piece in group.slices_with_role(role):
                index, shape = piece.positions(), [1] * base[piece.param].dim()
                shape[piece.dim] = -1
                ones = torch.ones(base[piece.param].shape[piece.dim], dtype=torch.float64)
                gate = ones.index_put((index.reshape(-1),), own.repeat_interleave(index.shape[1]))
                params[piece.param] = params[piece.param] * gate.view(shape)
        return torch.func.functional_call(model, params, (x,))

    return logits, torch.ones(sum(sizes), dtype=torch.float64)


def gauss_newton(logits, gates: Tensor) -> Tensor:
    jacobian, p = torch.func.jacrev(logits)(gates), logits(gates).softmax(1)
    return torch.einsum("ncu,ncd,ndv->uv", jacobian, torch.diag_embed(p) - p[:, :, None] * p[:, None], jacobian) / len(
        p
    )


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(values.values()))


@pytest.mark.parametrize("case", CLASSIFIERS, ids=lambda case: case.__name__)
def test_joint_interactions_are_the_dense_gauss_newton_form(case: type[nn.Module]) -> None:
    model, x = make(case), image(batch=3)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x[:1], Y[:1]), (x[1:], Y[1:])], "joint", settings=SETTINGS)
    expected = gauss_newton(*gated(model, groups, x, "consumer"))
    torch.testing.assert_close(found.interactions, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(flat(found), expected.diagonal() / 2, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped])
def test_sosp_i_against_the_dense_gauss_newton_form(case: type[nn.Module]) -> None:
    model, x = make(case), image(batch=3)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x, Y)], "sosp-i", settings=SETTINGS)
    logits, gates = gated(model, groups, x, "producer")
    expected = gauss_newton(logits, gates).abs()
    gradient = torch.func.grad(lambda g: F.cross_entropy(logits(g), Y))(gates)
    torch.testing.assert_close(found.interactions, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(flat(found), gradient.abs() + expected.diagonal() / 2, rtol=1e-9, atol=1e-14)


def as_factor(rows: int) -> Settings:
    return replace(SETTINGS, options=hp.TraceOptions(interaction_rows=rows))


@pytest.mark.parametrize("method", ["joint", "sosp-i"])
@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped, Inverted])
def test_a_factor_of_all_rows_is_the_matrix_and_gives_its_plan(case: type[nn.Module], method: str) -> None:
    model, x = make(case), image(batch=3)
    groups, batches = hp.find_groups(model, x), [(x[:1], Y[:1]), (x[1:], Y[1:])]
    whole = hp.saliency(model, groups, batches, method, settings=SETTINGS)
    factor = hp.saliency(model, groups, batches, method, settings=as_factor(100))
    assert isinstance(factor.interactions, Factor)
    assert factor.interactions.absolute == (method == "sosp-i")
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
    whole = hp.saliency(model, groups, batches, "joint", settings=SETTINGS)
    short = hp.saliency(model, groups, batches, "joint", settings=as_factor(12))
    assert isinstance(whole.interactions, Tensor)
    assert isinstance(short.interactions, Factor)
    error = whole.interactions - short.interactions.dense()
    share = float(error.trace() / whole.interactions.trace())
    assert 0 < share < 0.5
    assert short.provenance["interactions_dropped"] == pytest.approx(share, rel=1e-9)
    assert float(torch.linalg.eigvalsh(error)[0]) > -1e-10
    torch.testing.assert_close(flat(short), flat(whole), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped, Norms])
def test_sosp_h_against_the_dense_hessian(case: type[nn.Module]) -> None:
    """`θ_sᵀ H θ_struc` by a dense Hessian over all producing weights."""
    model, x = make(case), image(batch=3, size=4)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x[:2], Y[:2]), (x[2:], Y[2:])], "sosp-h", settings=SETTINGS)
    names = sorted({p.param for g in groups for p in g.slices_with_role("producer")})
    sizes = [model.get_parameter(name).numel() for name in names]
    theta = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])

    def loss(weights: Tensor) -> Tensor:
        parts = zip(names, weights.split(sizes), strict=True)
        return F.cross_entropy(
            torch.func.functional_call(model, {n: w.view(model.get_parameter(n).shape) for n, w in parts}, (x,)), Y
        )

    def owned(group: Group, unit: int) -> Tensor:
        masks = {name: torch.zeros_like(model.get_parameter(name)) for name in names}
        for piece in group.slices_with_role("producer"):
            masks[piece.param].index_fill_(piece.dim, torch.tensor(piece.index[unit]), 1.0)
        return torch.cat([masks[name].reshape(-1) for name in names]).detach()

    every = sum(owned(group, unit) for group in groups for unit in range(group.num_units)).clamp(max=1)
    gradient = torch.func.grad(loss)(theta)
    product = torch.func.jvp(torch.func.grad(loss), (theta,), (theta * every,))[1]
    for group in groups:
        for unit in (0, group.num_units - 1):
            own = theta * owned(group, unit)
            expected = (own @ gradient).abs() + (own @ product).abs() / 2
            torch.testing.assert_close(found[group][unit], expected, rtol=1e-8, atol=1e-13)


def test_taylor_is_the_mean_absolute_gate_gradient() -> None:
    model, x = make(Residual), image(batch=3)
    groups = hp.find_groups(model, x)
    found = flat(hp.saliency(model, groups, [(x, Y)], "taylor", settings=SETTINGS))
    per_sample = []
    for n in range(3):
        logits, gates = gated(model, groups, x[n : n + 1], "consumer")
        per_sample.append(torch.func.grad(lambda g, f=logits, n=n: F.cross_entropy(f(g), Y[n : n + 1]))(gates).abs())
    torch.testing.assert_close(found, torch.stack(per_sample).mean(0), rtol=1e-9, atol=1e-14)


def test_on_a_linear_network_with_squared_loss_the_prediction_is_the_loss() -> None:
    """Where the Gauss–Newton form is the loss itself, joint saliencies predict the increase of any removal exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    y = model(x).detach()  # at the minimum: the gradient is zero
    groups = hp.find_groups(model, x)
    settings = Settings(precision="fp64", loss_fn=nn.MSELoss(), compensated=False)
    found = hp.saliency(model, groups, [(x, y)], "joint", settings=settings)
    plan = hp.make_plan(model, groups, found, hp.Budget(params=0.5), example_inputs=x)
    removed = torch.tensor(plan.removed["0"])
    predicted = 0.5 * found.interactions[removed][:, removed].sum()
    measured = F.mse_loss(hp.apply_plan(model, plan)(x), y)
    torch.testing.assert_close(predicted, measured.detach(), rtol=1e-10, atol=0)


def test_bn_scale_sums_the_scales_of_a_unit() -> None:
    model, x = make(Residual), image(batch=3)
    groups = hp.find_groups(model, x)
    values = hp.saliency(model, groups, [(x, Y)], "bn_scale")
    assert torch.equal(values["inner.0"], model.inner[1].weight.detach().abs())
    wide = next(group for group in groups if group.name == "wide.0")
    columns = torch.tensor([row[0] for row in wide.slices_with_role("producer")[0].index])
    assert torch.equal(values[wide], model.wide[1].weight.detach().abs()[columns])


def test_bn_scale_needs_batchnorm_everywhere() -> None:
    model, x = make(Flatten), image(batch=3)
    with pytest.raises(hp.ArgumentError, match="must find a BatchNorm in every group, got none in 'conv'"):
        hp.saliency(model, hp.find_groups(model, x), [(x, Y)], "bn_scale")
