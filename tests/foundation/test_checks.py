"""Weights and statistics must be finite; masks and bounds may be infinite, and nothing may be NaN."""

import pytest
import torch
from torch import nn

from hessprune.errors import DataError, NumericalError
from hessprune.foundation.checks import check_finite_parameters, check_labels


def masked(**buffers: torch.Tensor) -> nn.Module:
    """Return a layer with buffers of its own."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for name, value in buffers.items():
        model.register_buffer(name, value)
    return model


@pytest.mark.parametrize(("labels", "index"), [([0, 255, 1], 255), ([-1, 0, 1], -1)])
def test_labels_out_of_range_may_be_meant_to_be_ignored(labels, index):
    with pytest.raises(DataError, match=rf"ignored, write -100, or .*nn\.CrossEntropyLoss\(ignore_index={index}\)"):
        check_labels(torch.tensor(labels), 3)


def test_masks_and_bounds_may_be_infinite():
    model = masked(mask=torch.full((4, 4), -torch.inf).triu(1), most=torch.tensor(torch.inf))
    assert not torch.isfinite(model.mask).all()
    check_finite_parameters(model)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("place", ["0.weight", "1.running_var"])
def test_weights_and_statistics_may_not(place, value):
    model = masked()
    model.state_dict()[place].view(-1)[0] = value
    with pytest.raises(NumericalError, match=place):
        check_finite_parameters(model)


def test_no_buffer_may_hold_a_nan():
    with pytest.raises(NumericalError, match="mask"):
        check_finite_parameters(masked(mask=torch.tensor([1.0, torch.nan])))
