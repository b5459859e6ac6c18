"""Derivatives in gates, where batches hold labels that do not count."""

import pytest
import torch

from hessprune.curvature import ParamSlice
from hessprune.curvature.gate_interactions import gate_interactions
from hessprune.errors import DataError
from tests.curvature.nets import Residual, batches_of, build

GATES = {"conv1": [ParamSlice(param="conv2.weight", dim=0, index=torch.arange(4)[:, None])]}


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_ignored_samples_change_nothing(precision):
    model, (first, second) = build(Residual), batches_of()
    ignored = torch.full((3,), -100)
    batches = [first, (first[0], ignored), (torch.cat([first[0], second[0]]), torch.cat([ignored, second[1]]))]
    plain, padded = (gate_interactions(model, GATES, data, precision=precision) for data in ([first, second], batches))
    tolerance = {"rtol": 1e-10, "atol": 1e-14} if precision == "fp64" else {"rtol": 1e-3, "atol": 1e-7}
    for name in ("diagonal", "gradient", "absolute_gradient"):
        torch.testing.assert_close(getattr(padded, name), getattr(plain, name), **tolerance)
    torch.testing.assert_close(padded.quadratic.dense(), plain.quadratic.dense(), **tolerance)
    assert (padded.num_samples, plain.num_samples) == (11, 5)


def test_only_ignored_labels_are_refused():
    x = batches_of()[0][0]
    with pytest.raises(DataError, match="must hold at least one label that counts, got only ignored ones"):
        gate_interactions(build(Residual), GATES, [(x, torch.full((3,), -100))])
