"""SOSP-H against the dense Hessian in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.structure.groups import Group
from tests.cases import ChunkCat, Grouped, Norms, Plain, Residual, image, make
from tests.methods.gating import Y

SOSPI = hp.SOSPI(precision="fp64")


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped, Norms])
def test_sosp_h_against_the_dense_hessian(case: type[nn.Module]) -> None:
    """`θ_sᵀ H θ_struc` by a dense Hessian over all producing weights."""
    model, x = make(case), image(batch=3, size=4)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x[:2], Y[:2]), (x[2:], Y[2:])], hp.SOSPH(precision="fp64"))
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


def test_losses_without_a_second_derivative_are_named() -> None:
    def loss(output: Tensor, texts: Tensor) -> Tensor:
        lengths = torch.tensor([output.shape[1]] * len(output)), torch.tensor([texts.shape[1]] * len(output))
        return F.ctc_loss(output.log_softmax(-1).transpose(0, 1), texts, *lengths)

    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)), torch.randn(2, 7, 4)
    groups, batches = hp.find_groups(net, x), [(x, torch.tensor([[1, 2], [3, 4]]))]
    with pytest.raises(hp.errors.UnsupportedModelError, match=r"`loss_fn` must .*'ctc_loss_backward'.*method=hp\.HAP"):
        hp.saliency(net, groups, batches, "sosp-h", loss_fn=loss)
    assert hp.saliency(net, groups, batches, hp.HAP(), loss_fn=loss)["0"].shape == (8,)
