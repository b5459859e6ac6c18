"""Encoded images from files that nobody vouches for: known formats only, and no image that fills the memory."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hessprune.errors import DataError
from hessprune.foundation.checks import optional_import

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # in this order: trying others first costs a third of the time
MOST_PIXELS = 2**26
"""Of one image, 192 MB as RGB. A file of some kilobytes can hold billions."""


def decode_image(content: bytes | str | Path, name: str, modes: Sequence[str] = ("RGB",)) -> Any:
    """Return an image of a file, or of its bytes, in one of `modes`, else as RGB.

    Formats outside `FORMATS` are refused, because some decoders start other programs.

    Args:
        content: The encoded bytes, or a path.
        name: How messages call the image.
        modes: Modes of Pillow that stay as they are.

    Returns:
        A Pillow image, decoded.

    Raises:
        DataError: The bytes are no image of a known format, are truncated, or have too many pixels.
    """
    pillow = optional_import("PIL.Image", "data")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about sizes: the limit here is lower
            with pillow.open(source, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    found = f"{image.width} x {image.height} pixels"
                    raise DataError(f"{name} cannot be decoded ({found}, more than {MOST_PIXELS:,}). Shrink it.")
                image.load()
                return image if image.mode in modes else image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # broken bytes fail inside the decoders with whatever they trip over
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name} cannot be decoded ({reason}). Replace or remove it.") from error
