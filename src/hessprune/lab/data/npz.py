"""NumPy archives: `train_images`, `train_labels`, `test_images`, `test_labels`."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from hessprune.errors import DataError
from hessprune.foundation.formatting import shown
from hessprune.lab.data.arrays import ImageArrays, check_memory, count_classes
from hessprune.lab.data.splits import OfficialSplits


def read_npz(root: Path) -> OfficialSplits:
    """Read an `.npz` file, or the only one in a folder; images are uint8 `(N, H, W, C)` or `(N, H, W)`."""
    path = _archive(root)
    try:
        with zipfile.ZipFile(path) as file:
            size_bytes = sum(entry.file_size for entry in file.infolist())
        check_memory(size_bytes, str(path))
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            train, test = (_arrays(archive, split, path) for split in ("train", "test"))
    except DataError:
        raise
    except Exception as error:  # broken bytes fail inside the parsers with whatever they trip over
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"archive {str(path)!r} cannot be read ({reason}). Write it with numpy.savez.") from error
    num_classes = count_classes(train.labels, str(path))
    return OfficialSplits(name=path.stem, train=train, test=test, num_classes=num_classes)


def _archive(root: Path) -> Path:
    """Return the file itself, or the single archive of a folder."""
    found = [root] if root.is_file() else sorted(root.glob("*.npz"))
    if len(found) != 1:
        raise DataError(
            f"`root` must be an .npz file or a folder with exactly one, got {shown(str(root))} ({len(found)})."
        )
    return found[0]


def _arrays(archive: "np.lib.npyio.NpzFile", split: str, path: Path) -> ImageArrays:
    """Take one split out of an open archive."""
    names = [f"{split}_images", f"{split}_labels"]
    absent = [name for name in names if name not in archive]
    if absent:
        raise DataError(f"archive {str(path)!r} must hold {', '.join(absent)}, got {', '.join(archive.files)}.")
    images, labels = (archive[name] for name in names)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4:
        found = f"{images.dtype} {images.shape}"
        raise DataError(f"{names[0]!r} in {str(path)!r} must be uint8 (N, H, W, C) or (N, H, W), got {found}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{names[1]!r} in {str(path)!r} must be integers, got {labels.dtype}.")
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return ImageArrays(images=torch.from_numpy(nchw), labels=torch.from_numpy(labels.astype(np.int64)))
