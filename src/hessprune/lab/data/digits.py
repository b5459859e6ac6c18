"""The built-in default: 1 797 handwritten digits of 8×8 pixels, drawn larger where a network should have work."""

from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F

from hessprune.lab.data.arrays import ImageArrays
from hessprune.lab.data.splits import OfficialSplits, stratified_split

SIZES = {"digits": 8, "digits-16": 16}
"""Sources, and the pixels along each side of their images."""
TEST_SIZE = 450
TEST_SEED = 1998  # fixed: the test images stay the same whatever seed splits the rest
LEVELS = 16


def read_digits(name: str = "digits") -> OfficialSplits:
    """Return the digits as uint8 `(N, 1, H, W)`; a fixed quarter is the test split.

    Larger images are drawn by bilinear interpolation, by whole factors: sums of few binary digits, equal on every
    machine.

    Args:
        name: A key of `SIZES`.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI machine learning repository,
        CC BY 4.0; the test part, as scikit-learn has it.
    """
    with files("hessprune.lab.data").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        levels, labels = torch.from_numpy(archive["images"]).float(), torch.from_numpy(archive["labels"]).long()
    larger = F.interpolate(levels[:, None], scale_factor=SIZES[name] // 8, mode="bilinear")
    everything = ImageArrays(images=(larger * (255 / LEVELS)).round().to(torch.uint8), labels=labels)
    test, train = stratified_split(labels, TEST_SIZE, TEST_SEED)
    return OfficialSplits(
        name=name,
        train=everything.subset(train),
        test=everything.subset(test),
        num_classes=10,
        augmentation="crop",
    )
