"""Small random images for the tests of this folder."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hessprune.lab.data import ImageArrays

SHARED = Path(__file__).parents[4] / "shared" / "data"


def random_arrays(num: int, *, num_classes: int = 3, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> ImageArrays:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, *shape), dtype=torch.uint8, generator=generator)
    return ImageArrays(images=images, labels=torch.arange(num) % num_classes)


def random_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth enough for JPEG to keep."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, quality=95)
    return buffer.getvalue()
