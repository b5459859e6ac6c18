"""Losses of implants: the unexplained share of a unit's variance, against a naive regression."""

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.methods import implant_losses
from tests.cases import Inverted, Residual, Tokens, image, make

X = image(batch=8)
BATCHES = [(X[:5], torch.arange(5) % 4), (X[5:], torch.arange(3) % 4)]


def test_against_a_naive_regression() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    saliency = hp.saliency(model, groups, BATCHES, method="magnitude")
    found = implant_losses(model, groups, BATCHES, saliency)
    with torch.no_grad():
        x = model.stem(X)
        y = model.inner[0](x).movedim(1, -1).flatten(0, -2)
        x = x.movedim(1, -1).flatten(0, -2)
    x, y = x - x.mean(0), y - y.mean(0)
    left = (y - x @ torch.linalg.lstsq(x, y).solution).square().sum(0) / y.square().sum(0)
    torch.testing.assert_close(found.implant_losses["inner.0"], left * saliency["inner.0"], rtol=1e-4, atol=1e-6)
    assert found == saliency
    assert found.provenance == saliency.provenance


def test_units_with_several_layers_lose_the_mean() -> None:
    model = make(Residual)
    with torch.no_grad():  # of the stream's three layers two become 1×1: a third of the loss is left at most
        for layer in (model.stem[0], model.outer):
            centre = layer.weight[:, :, 1, 1].clone()
            layer.weight.zero_()[:, :, 1, 1] = centre
    groups = hp.find_groups(model, X)
    losses = implant_losses(model, groups, BATCHES, {g.name: torch.ones(g.num_units) for g in groups}).implant_losses
    assert float(losses["stem.0"].max()) <= 1 / 3 + 1e-4


def test_only_groups_that_can_have_stand_ins_are_there() -> None:
    for case, names in ((Inverted, {"stem.0"}), (Tokens, set())):
        model = make(case)
        groups = hp.find_groups(model, X)
        ones = {group.name: torch.ones(group.num_units) for group in groups}
        assert set(implant_losses(model, groups, BATCHES, ones).implant_losses) == names


def test_a_higher_rank_loses_less() -> None:
    model = make(Residual)
    groups = hp.find_groups(model, X)
    ones = {group.name: torch.ones(group.num_units) for group in groups}
    totals = [
        float(implant_losses(model, groups, BATCHES, ones, rank=r).implant_losses["inner.0"].sum()) for r in (1, 3)
    ]
    assert totals[0] > totals[1] > 0


def test_the_model_is_left_untouched() -> None:
    model = make(Residual).train()
    groups = hp.find_groups(model, X)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    implant_losses(model, groups, BATCHES, {g.name: torch.ones(g.num_units) for g in groups})
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_one_shot_batches_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with pytest.raises(hp.DataError, match="must be re-iterable"):
        implant_losses(net, hp.find_groups(net, X), iter(BATCHES), {"0": torch.ones(4)})
