"""SOSP-I against the dense Gauss–Newton form in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hessprune as hp
from tests.cases import ChunkCat, Grouped, Plain, Residual, image, make
from tests.methods.gating import Y, flat, gated, gauss_newton

SOSPI = hp.SOSPI(precision="fp64")


@pytest.mark.parametrize("case", [Plain, Residual, ChunkCat, Grouped])
def test_sosp_i_against_the_dense_gauss_newton_form(case: type[nn.Module]) -> None:
    model, x = make(case), image(batch=3)
    groups = hp.find_groups(model, x)
    found = hp.saliency(model, groups, [(x, Y)], SOSPI)
    logits, gates = gated(model, groups, x, "producer")
    expected = gauss_newton(logits, gates).abs()
    gradient = torch.func.grad(lambda g: F.cross_entropy(logits(g), Y))(gates)
    torch.testing.assert_close(found.interactions, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(flat(found), gradient.abs() + expected.diagonal() / 2, rtol=1e-9, atol=1e-14)
