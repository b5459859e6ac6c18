"""Crop and flip against a plain loop, and in distribution."""

import pytest
import torch

from hessprune.lab.data.augment import crop_flip
from tests.lab.data.samples import random_arrays


def naive(images: torch.Tensor, augment: str, uniform: torch.Tensor) -> torch.Tensor:
    """Cut each image out of a padded copy, one at a time."""
    count, channels, height, width = images.shape
    pad = max(1, height // 8)
    result = torch.empty_like(images)
    for row in range(count):
        padded = torch.zeros(channels, height + 2 * pad, width + 2 * pad, dtype=torch.uint8)
        padded[:, pad : pad + height, pad : pad + width] = images[row]
        down, right = (int(uniform[row, axis] * (2 * pad + 1)) for axis in (0, 1))
        cut = padded[:, down : down + height, right : right + width]
        result[row] = cut.flip(2) if augment == "crop-flip" and uniform[row, 2] < 0.5 else cut
    return result


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 12), (2, 3, 3)])
def test_equals_the_plain_loop(augment, shape):
    images = random_arrays(40, shape=shape).images
    uniform = torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    assert torch.equal(crop_flip(images, augment, uniform), naive(images, augment, uniform))
    assert torch.equal(images, before)


def test_all_shifts_and_both_sides_occur():
    """A single lit pixel in the middle of 8×8 lands on each of 9 places, mirrored or not, about equally often."""
    images = torch.zeros(3600, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 4, 3] = 1
    uniform = torch.rand(3600, 5, generator=torch.Generator().manual_seed(1))
    landed = crop_flip(images, "crop-flip", uniform).float().mean(0)[0]
    assert landed[3:6, 2:6].sum() == pytest.approx(1)
    # Columns 2 and 5 are reached by one of the two sides, columns 3 and 4 by both.
    torch.testing.assert_close(landed[3:6, 2:6], torch.tensor([[1.0, 2, 2, 1]] * 3) / 18, rtol=0, atol=0.02)
