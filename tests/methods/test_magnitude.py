import pytest
import torch
from torch import nn

import hessprune as hp
from tests.cases import Grouped, Plain, Residual, image, make

X = image()
BATCHES = [(X, torch.zeros(len(X), dtype=torch.int64))]


def test_weights_that_are_all_zero_are_named() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(hp.errors.NumericalError, match=r"all weights that it reads are zero\. Load a check") as caught:
        hp.saliency(net, hp.find_groups(net, x), [x], "magnitude")
    assert "method=" not in str(caught.value)


def test_magnitude_against_a_loop_over_units() -> None:
    for case in (Plain, Residual, Grouped):
        model = make(case)
        groups = hp.find_groups(model, X)
        for group, values in zip(groups, hp.saliency(model, groups, BATCHES, hp.Magnitude()).values(), strict=True):
            for unit in range(group.num_units):
                expected = 0.0
                for piece in group.slices_with_role("producer"):
                    weight = model.get_parameter(piece.param).detach()
                    rows = torch.stack([weight.select(piece.dim, position) for position in piece.index[unit]])
                    expected += float((rows**2).sum() / rows.numel())
                assert abs(float(values[unit]) - expected) < 1e-12
