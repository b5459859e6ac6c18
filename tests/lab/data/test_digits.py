"""The digits that come with the package are those of scikit-learn, and are drawn alike on every machine."""

import pytest
import torch

from hessprune.lab.data import load_dataset
from hessprune.lab.data.digits import SIZES, read_digits


def test_they_are_those_of_scikit_learn():
    raw = pytest.importorskip("sklearn.datasets").load_digits()
    official = read_digits()
    images = torch.cat([official.train.images, official.test.images])
    expected = torch.from_numpy(raw.images * (255 / 16)).round().to(torch.uint8)
    order = [torch.from_numpy(raw.images.reshape(len(raw.images), -1)).sum(1)]
    assert images.shape == (1797, 1, 8, 8)
    assert torch.equal(images.flatten().bincount(minlength=256), expected.flatten().bincount(minlength=256))
    assert len(order[0]) == len(official.train) + len(official.test)


def test_sizes_share_their_splits_and_their_means():
    small, large = (load_dataset(name, validation_size=200) for name in SIZES)
    assert large.input_shape == (1, 16, 16)
    for split in ("train", "test"):
        one, two = small.part(split), large.part(split)
        assert torch.equal(one.labels, two.labels)
        gap = one.images.float().mean((1, 2, 3)) - two.images.float().mean((1, 2, 3))
        assert float(gap.abs().max()) < 8
    assert large.test.digest().hex().startswith(DIGEST)


DIGEST = "3d98e68ef8444e39"
