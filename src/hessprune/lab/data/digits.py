"""The built-in default: 1 797 handwritten digits of 8×8 pixels, from scikit-learn."""

import numpy as np
import torch

from hessprune.foundation.checks import optional_import
from hessprune.lab.data.arrays import ImageArrays
from hessprune.lab.data.splits import OfficialSplits, stratified_split

TEST_SIZE = 450
TEST_SEED = 1998  # fixed: the test images stay the same whatever seed splits the rest


def read_digits() -> OfficialSplits:
    """Return the digits as uint8 `(N, 1, 8, 8)`; a fixed quarter is the test split.

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI machine learning repository.
    """
    raw = optional_import("sklearn.datasets", "data").load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(raw.target).long()
    everything = ImageArrays(images=torch.from_numpy(pixels)[:, None], labels=labels)
    test, train = stratified_split(labels, TEST_SIZE, TEST_SEED)
    return OfficialSplits(
        name="digits",
        train=everything.subset(train),
        test=everything.subset(test),
        num_classes=10,
        augmentation="crop",
    )
