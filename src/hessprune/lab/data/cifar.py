"""CIFAR-10 and CIFAR-100 in their original archives: pickled arrays, read without running what a pickle may hold."""

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from hessprune.errors import DataError
from hessprune.lab.data.arrays import ImageArrays
from hessprune.lab.data.splits import OfficialSplits

SHAPE = (-1, 3, 32, 32)
PIXELS = 3 * 32 * 32
MOST_ROWS = 100_000
"""Of one file: the original ones have at most 50 000, and a pickle can claim any size."""
CIFAR10_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


def read_cifar10(root: Path) -> OfficialSplits:
    """Read `data_batch_1` … `data_batch_5` and `test_batch`, in `root` or in `root/cifar-10-batches-py`."""
    folder = _folder(root, "cifar-10-batches-py", CIFAR10_TRAIN[0])
    train = [_read_archive(folder / name, "labels") for name in CIFAR10_TRAIN]
    test = _read_archive(folder / "test_batch", "labels")
    return OfficialSplits(name="cifar10", train=_join(train), test=test, num_classes=10)


def read_cifar100(root: Path) -> OfficialSplits:
    """Read `train` and `test` with the 100 fine labels, in `root` or in `root/cifar-100-python`."""
    folder = _folder(root, "cifar-100-python", "train")
    train, test = (_read_archive(folder / name, "fine_labels") for name in ("train", "test"))
    return OfficialSplits(name="cifar100", train=train, test=test, num_classes=100)


def restricted_load(file: IO[bytes]) -> Any:
    """Unpickle containers, numbers, text and plain arrays; refuse everything else.

    Raises:
        pickle.UnpicklingError: The pickle names a function or class that no plain array needs.

    Example:
        >>> import io
        >>> restricted_load(io.BytesIO(pickle.dumps({"labels": [1, 2]})))
        {'labels': [1, 2]}
        >>> restricted_load(io.BytesIO(pickle.dumps(print)))
        Traceback (most recent call last):
            ...
        _pickle.UnpicklingError: refused 'builtins.print'
    """
    return _ArrayUnpickler(file, encoding="latin1").load()


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, which Python 3 writes for bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused encoding {encoding!r}")
    return text.encode("latin1")


# An array's own recipe names the two private functions under whatever path this NumPy has for them.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that resolves nothing but what plain arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused '{module}.{name}'")
        return _ALLOWED[module, name]


def _folder(root: Path, name: str, first_file: str) -> Path:
    """Return the folder that holds the archive: `root` itself or its subfolder `name`."""
    for folder in (root, root / name):
        if (folder / first_file).is_file():
            return folder
    raise DataError(
        f"folder {str(root)!r} must hold {first_file!r} or the folder {name!r}. Unpack the python version of the "
        "archive there (tar -xzf), or use source 'parquet' or 'npz' for other formats."
    )


def _read_archive(path: Path, label_key: str) -> ImageArrays:
    """Read one pickled batch."""
    if not path.is_file():
        raise DataError(f"archive file {str(path)!r} must exist. Unpack the archive again.")
    try:
        with path.open("rb") as file:
            content = restricted_load(file)
    except Exception as error:  # broken bytes fail with whatever they trip over
        raise DataError(
            f"archive file {str(path)!r} cannot be read ({error}): it is truncated, or holds more than arrays. "
            "Nothing in it was run. Get the archive from its original place."
        ) from error
    return _arrays(content, label_key, path)


def _arrays(content: Any, label_key: str, path: Path) -> ImageArrays:
    """Check what an archive holds, and shape it."""
    entries: dict[Any, Any] = content if isinstance(content, dict) else {}
    data: Any = entries.get("data", entries.get(b"data"))
    labels: Any = entries.get(label_key, entries.get(label_key.encode()))
    labels = labels.tolist() if isinstance(labels, np.ndarray) and labels.size <= MOST_ROWS else labels
    if not _are_images(data) or not _are_labels(labels, data.size // PIXELS):
        raise DataError(
            f"archive file {str(path)!r} must hold 'data', uint8 (N, 3072), and integers {label_key!r}, the class "
            "of each image. Get the archive from its original place."
        )
    images = torch.from_numpy(data.reshape(SHAPE).copy())
    return ImageArrays(images=images, labels=torch.tensor(labels, dtype=torch.int64, device="cpu"))


def _are_images(data: Any) -> bool:
    is_bytes = isinstance(data, np.ndarray) and data.dtype == np.uint8
    return is_bytes and data.size <= PIXELS * MOST_ROWS and data.size % PIXELS == 0


def _are_labels(labels: Any, number: int) -> bool:
    is_list = isinstance(labels, list) and len(labels) == number
    return is_list and all(isinstance(label, int) and abs(label) < 2**31 for label in labels)


def _join(parts: list[ImageArrays]) -> ImageArrays:
    return ImageArrays(
        images=torch.cat([part.images for part in parts]), labels=torch.cat([part.labels for part in parts])
    )
