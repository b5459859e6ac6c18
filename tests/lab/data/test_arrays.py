"""Arrays check what they hold, select, digest, and know their statistics."""

import pytest
import torch

from hessprune.errors import DataError
from hessprune.lab.data.arrays import ImageArrays, channel_statistics
from tests.lab.data.samples import random_arrays


def test_subset_keeps_the_order_asked_for():
    arrays = random_arrays(6)
    part = arrays.subset(torch.tensor([4, 1]))
    assert torch.equal(part.images, arrays.images[[4, 1]])
    assert torch.equal(part.labels, arrays.labels[[4, 1]])
    assert arrays.input_shape == (3, 8, 8)


def test_digest_sees_pixels_labels_and_order():
    arrays = random_arrays(6)
    digests = {arrays.digest(), arrays.subset(torch.arange(5, -1, -1)).digest(), random_arrays(6, seed=1).digest()}
    digests.add(ImageArrays(images=arrays.images, labels=(arrays.labels + 1) % 3).digest())
    assert len(digests) == 4
    assert arrays.digest() == random_arrays(6).digest()


def test_channel_statistics_match_torch():
    images = random_arrays(20).images
    mean, std = channel_statistics(images)
    scaled = images.double().permute(1, 0, 2, 3).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), scaled.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), scaled.std(1, correction=0), rtol=0, atol=1e-12)


def test_constant_channel_gets_unit_deviation():
    assert channel_statistics(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))[1] == (1.0,)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)], ids=["float", "no-channels"]
)
def test_wrong_images_are_refused(images):
    with pytest.raises(DataError, match="`images` must be a uint8 tensor"):
        ImageArrays(images=images, labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.tensor([0.0, 1.0]), torch.tensor([[0], [1]])])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(DataError, match=r"`labels` must be an int64 tensor \(2,\)"):
        ImageArrays(images=torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels=labels)
