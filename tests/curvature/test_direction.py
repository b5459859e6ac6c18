"""The product in the direction of the weights, against the dense Hessian, and where labels do not count."""

import pytest
import torch

from hessprune.curvature.direction import weight_curvature
from hessprune.curvature.options import TraceOptions
from hessprune.errors import DataError
from tests.curvature.nets import Residual, batches_of, build, rows
from tests.oracles import dense_hessian

NAME = "conv2.weight"


def test_products_are_those_of_the_dense_hessian():
    model, batches = build(Residual), batches_of()
    values = weight_curvature(model, {"all": [rows(model, NAME, 0)]}, batches, precision="fp64")["all"]
    weight = model.get_parameter(NAME).detach()
    product = (dense_hessian(model, batches, NAME) @ weight.flatten()).view_as(weight) * weight
    torch.testing.assert_close(values, product.flatten(1).sum(1), rtol=1e-7, atol=1e-12)


def test_ignored_samples_change_nothing():
    model, (first, second) = build(Residual), batches_of()
    ignored = torch.full((3,), -100)
    data = [first, (first[0], ignored), (torch.cat([first[0], second[0]]), torch.cat([ignored, second[1]]))]
    slices = {"all": [rows(model, NAME, 0)]}
    plain = weight_curvature(model, slices, [first, second], precision="fp64")["all"]
    padded = weight_curvature(model, slices, data, precision="fp64", options=TraceOptions(chunk_size=2))["all"]
    torch.testing.assert_close(padded, plain, rtol=1e-10, atol=1e-14)
    with pytest.raises(DataError, match="must hold at least one label that counts, got only ignored ones"):
        weight_curvature(model, slices, [(first[0], ignored)])
    with pytest.raises(ArithmeticError, match="outputs must be finite"):
        weight_curvature(model, slices, [(torch.full_like(first[0], torch.inf), first[1])])
