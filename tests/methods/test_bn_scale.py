"""The scales of BatchNorm."""

import pytest
import torch

import hessprune as hp
from tests.cases import Flatten, Residual, image, make
from tests.methods.gating import Y

SOSPI = hp.SOSPI(precision="fp64")


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
    with pytest.raises(hp.errors.ArgumentError, match="must find a BatchNorm in every group, got none in 'conv'"):
        hp.saliency(model, hp.find_groups(model, x), [(x, Y)], "bn_scale")
