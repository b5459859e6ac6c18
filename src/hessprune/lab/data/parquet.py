"""Parquet in the Hugging Face image layout: encoded images in `image: struct{bytes, path}`, and an integer label."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hessprune.errors import DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.progress import track
from hessprune.lab.data.arrays import ImageArrays, check_memory, count_classes
from hessprune.lab.data.decoding import decode_image
from hessprune.lab.data.splits import OfficialSplits

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BYTES_PER_ROW = 64
"""At least, once a row is read: a small file can claim any number of rows."""


def read_parquet(root: Path) -> OfficialSplits:
    """Read `train*.parquet` and `test*.parquet` (or `val*.parquet`) anywhere below `root`, and decode every image."""
    train = _read_split(root, ("train",))
    test = _read_split(root, ("test", "val"))
    return OfficialSplits(name=root.name, train=train, test=test, num_classes=count_classes(train.labels, str(root)))


def _read_split(root: Path, prefixes: tuple[str, ...]) -> ImageArrays:
    """Read all files of one split, in the order of their names."""
    found = ([path for path in sorted(root.rglob(f"{prefix}*.parquet")) if path.is_file()] for prefix in prefixes)
    paths = next((paths for paths in found if paths), None)
    if paths is None:
        wanted = " or ".join(f"'{prefix}*.parquet'" for prefix in prefixes)
        raise DataError(f"folder {str(root)!r} must hold {wanted}, got none. Check the path.")
    if len({path.parent for path in paths}) > 1:
        folders = ", ".join(sorted({repr(str(path.parent)) for path in paths}))
        raise DataError(f"`root` must hold one data set, got {folders}. Give one of them.")
    columns = [_read_columns(path) for path in paths]
    encoded = [item for images, _ in columns for item in images]
    labels = np.concatenate([labels for _, labels in columns])
    if not encoded:
        raise DataError(f"file {str(paths[0])!r} must hold at least one row, got none.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels in {str(paths[0])!r} must be integers without gaps, got {labels.dtype}.")
    return ImageArrays(images=_decode_all(encoded, paths[0]), labels=torch.from_numpy(labels.astype(np.int64)))


def _read_columns(path: Path) -> tuple[list[Any], np.ndarray]:
    """Return the encoded images and the labels of one file."""
    pyarrow, parquet = optional_import("pyarrow", "data"), optional_import("pyarrow.parquet", "data")
    image: str | None = None
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        image = next((name for name in IMAGE_COLUMNS if name in names), None)
        label = next((name for name in LABEL_COLUMNS if name in names), None)
        if image is None or label is None:
            wanted = f"{' or '.join(IMAGE_COLUMNS)} and {' or '.join(LABEL_COLUMNS)}"
            raise DataError(f"file {str(path)!r} must have columns {wanted}, got {', '.join(names)}.")
        check_memory(file.metadata.num_rows * BYTES_PER_ROW, str(path))
        table = file.read(columns=[f"{image}.bytes", label])
        if not pyarrow.types.is_struct(table[image].type):
            raise KeyError(image)
        return table[image].combine_chunks().field("bytes").to_pylist(), table[label].to_numpy()
    except KeyError as error:
        raise DataError(
            f"column {image!r} of {str(path)!r} must be a struct with a field 'bytes'. Write it as the Hugging Face "
            "feature Image, or use source 'npz'."
        ) from error
    except (OSError, MemoryError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"file {str(path)!r} cannot be read as Parquet ({reason}). Copy it again.") from error


def _decode_all(encoded: list[bytes | None], path: Path) -> torch.Tensor:
    """Decode images of one size to uint8 `(N, C, H, W)`; grey images keep their single channel."""
    first = _decode(encoded[0], 0, path)
    check_memory(len(encoded) * first.size, str(path))
    images = np.empty((len(encoded), *first.shape), dtype=np.uint8)
    for row, content in enumerate(track(encoded, f"decoding {path.name}")):
        image = _decode(content, row, path)
        if image.shape != first.shape:
            found = f"{image.shape} in row {row} and {first.shape} before"
            raise DataError(f"images in {str(path)!r} must have one size, got {found}. Use source 'image-folder'.")
        images[row] = image
    nhwc = images if images.ndim == 4 else images[..., None]
    return torch.from_numpy(np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2)))


def _decode(content: Any, row: int, path: Path) -> np.ndarray:
    """Decode one image as `(H, W, 3)`, or `(H, W)` if it is grey."""
    name = f"image in row {row} of {str(path)!r}"
    return np.asarray(decode_image(content if isinstance(content, bytes) else b"", name, ("L", "RGB")))
