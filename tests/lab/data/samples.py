"""Small random images for the tests of this folder."""

import io
import struct
import zlib
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


def bomb(side: int = 20_000) -> bytes:
    """Return a PNG of some kilobytes with `side`² black pixels."""
    packer = zlib.compressobj(9)
    row = b"\0" + bytes(side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
