import pytest
import torch

import hessprune as hp
from tests.cases import Plain, image, make

X = image()
BATCHES = [(X, torch.zeros(len(X), dtype=torch.int64))]


def test_random_removes_the_same_share_of_every_group() -> None:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    values = hp.saliency(model, groups, BATCHES, hp.Random(seed=0))
    for group in groups:
        assert torch.equal(values[group.name].sort().values * group.num_units, torch.arange(group.num_units) + 0.5)
    other = hp.saliency(model, groups, BATCHES, hp.Random(seed=1))
    assert not all(torch.equal(values[group], other[group]) for group in groups)


def test_the_seed_of_the_call_counts_where_the_method_has_none() -> None:
    model = make(Plain)
    groups = hp.find_groups(model, X)
    given, own = (hp.saliency(model, groups, BATCHES, hp.Random(seed=s), seed=t) for s, t in ((None, 3), (3, 0)))
    assert all(torch.equal(given[group], own[group]) for group in groups)
    with pytest.raises(hp.errors.ArgumentError, match="`seed` must be that of `method`, got 5"):
        hp.saliency(model, groups, BATCHES, hp.Random(seed=3), seed=5)


def test_data_are_read_by_no_more_than_the_check() -> None:
    """Counting samples must not cost a pass over the data."""
    passes = []

    class Batches:
        def __iter__(self):
            passes.append(1)
            return iter(BATCHES)

    model = make(Plain)
    values = hp.saliency(model, hp.find_groups(model, X), Batches(), "random")
    assert len(passes) == 1
    assert values.provenance["num_samples"] == 0
