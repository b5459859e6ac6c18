"""The stratified split: a partition, in proportion, decided by the seed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hessprune.lab.data.splits import stratified_split


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_partition_in_proportion(labels, share, seed):
    labels = torch.tensor(labels)
    size = int(share * len(labels))
    drawn, rest = stratified_split(labels, size, seed)
    assert len(drawn) == size
    assert sorted(torch.cat([drawn, rest]).tolist()) == list(range(len(labels)))
    counts = torch.bincount(labels[drawn], minlength=5)
    assert bool(((counts - torch.bincount(labels, minlength=5) * size / len(labels)).abs() < 1 + 1e-6).all())


def test_seed_decides():
    labels = torch.arange(100) % 10
    drawn, other = (stratified_split(labels, 30, seed)[0] for seed in (0, 1))
    assert torch.equal(drawn, stratified_split(labels, 30, 0)[0])
    assert set(drawn.tolist()) != set(other.tolist())


def test_order_is_mixed():
    labels = torch.arange(100) // 10
    drawn, rest = stratified_split(labels, 50, 0)
    assert not torch.equal(labels[drawn], labels[drawn].sort().values)
    assert not torch.equal(labels[rest], labels[rest].sort().values)
