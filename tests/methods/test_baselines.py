import torch

import hessprune as hp
from hessprune.methods.baselines import magnitude, random
from tests.cases import Grouped, Plain, Residual, image, make

X = image()


def test_magnitude_against_a_loop_over_units() -> None:
    for case in (Plain, Residual, Grouped):
        model = make(case)
        groups = hp.find_groups(model, X)
        for group, values in zip(groups, magnitude(model, groups).values(), strict=True):
            for unit in range(group.num_units):
                expected = 0.0
                for piece in group.slices_with_role("producer"):
                    weight = model.get_parameter(piece.param).detach()
                    rows = torch.stack([weight.select(piece.dim, position) for position in piece.index[unit]])
                    expected += float((rows**2).sum() / rows.numel())
                assert abs(float(values[unit]) - expected) < 1e-12


def test_random_removes_the_same_share_of_every_group() -> None:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    values = random(groups, seed=0)
    for group in groups:
        assert torch.equal(values[group.name].sort().values * group.num_units, torch.arange(group.num_units) + 0.5)
    assert not all(torch.equal(a, b) for a, b in zip(values.values(), random(groups, seed=1).values(), strict=True))
