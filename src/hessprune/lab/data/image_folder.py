"""ImageNet-style folders, `train/<class>/*.jpg` and `val/<class>/*.jpg`, decoded when a batch needs them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.hashing import file_sha256
from hessprune.foundation.progress import track
from hessprune.lab.data.augment import Augment
from hessprune.lab.data.decoding import decode_image
from hessprune.lab.data.splits import OfficialSplits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"})
TEST_FOLDERS = ("val", "test", "validation")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DECODERS = 16
MIN_AREA = 0.08
MAX_ASPECT = 4 / 3
CENTRE = 224 / 256

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageFiles:
    """Image files of any size, read as RGB `(3, size, size)`.

    Plainly: the centre square of 7/8 of the shorter side, as by resizing to 256 and cropping 224. Augmented: a box of
    random area (8 % to 100 %), aspect (3:4 to 4:3) and place, mirrored half of the time.
    """

    paths: tuple[str, ...]
    labels: Tensor
    """int64 `(N,)`."""
    size: int = 224
    prefetches: ClassVar[bool] = True

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """`(3, size, size)`."""
        return 3, self.size, self.size

    def subset(self, indices: Tensor) -> "ImageFiles":
        """Return the files at `indices`, in that order."""
        return replace(self, paths=tuple(self.paths[i] for i in indices.tolist()), labels=self.labels[indices])

    def read(self, indices: Tensor, augment: Augment | None, uniform: Tensor | None) -> Tensor:
        """Decode to uint8 `(B, 3, size, size)`, augmented by the draws `uniform` `(B, 5)` if asked."""
        paths = [self.paths[i] for i in indices.tolist()]
        draws = [None] * len(paths) if augment is None or uniform is None else uniform.tolist()
        with ThreadPoolExecutor(DECODERS) as pool:
            images = list(pool.map(self._decode, paths, draws, [augment == "crop-flip"] * len(paths)))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _decode(self, path: str, draws: Sequence[float] | None, flips: bool) -> np.ndarray:
        """Read one file as `(size, size, 3)`."""
        pillow, rgb = optional_import("PIL.Image", "data"), decode_image(path, f"image {path!r}")
        width, height = rgb.size
        box = centre_box(width, height) if draws is None else random_box(width, height, draws)
        pixels: Any = np.asarray(rgb.resize((self.size, self.size), pillow.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if flips and draws is not None and draws[4] < 0.5 else pixels

    def digest(self) -> bytes:
        """Return the SHA-256 of labels, class folders, file names and contents; each file is read once a process."""
        digest = hashlib.sha256(self.labels.numpy().data)
        with ThreadPoolExecutor(DECODERS) as pool:
            contents = track(pool.map(_content_sha256, self.paths), "hashing images", len(self.paths))
            for path, content in zip(map(Path, self.paths), contents, strict=True):
                digest.update(f"{path.parent.name}/{path.name} {content}\n".encode())
        return digest.digest()


def _content_sha256(path: str) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: The file is gone, or cannot be read.
    """
    try:
        status = Path(path).stat()
        return _remembered_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        raise DataError(f"image {path!r} must be readable ({error.strerror}). Replace or remove it.") from error


@cache
def _remembered_sha256(path: str, *_state: int) -> str:
    """Hash a file whose state on the disk is new; several splits and draws hold the same file."""
    return file_sha256(path)


def centre_box(width: int, height: int) -> Box:
    """Return the centre square of 224/256 of the shorter side, as (left, upper, right, lower).

    Example:
        >>> centre_box(512, 256)
        (144.0, 16.0, 368.0, 240.0)
    """
    side = CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(width: int, height: int, draws: Sequence[float]) -> Box:
    """Return a box of random area, aspect and place; `draws` are at least four uniform numbers in [0, 1).

    References:
        Szegedy et al. (2015), Going deeper with convolutions, arXiv:1409.4842, §6.
    """
    area = width * height * (MIN_AREA + (1 - MIN_AREA) * draws[0])
    aspect = exp(log(MAX_ASPECT) * (2 * draws[1] - 1))
    box_width = min(width, sqrt(area * aspect))
    box_height = min(height, sqrt(area / aspect))
    left, upper = (width - box_width) * draws[2], (height - box_height) * draws[3]
    return left, upper, left + box_width, upper + box_height


def read_image_folder(root: Path) -> OfficialSplits:
    """List `root/train/<class>/*` and the test images in `val`, `test` or `validation`."""
    test_folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), root / TEST_FOLDERS[0])
    classes = _classes(root / "train")
    return OfficialSplits(
        name=root.name,
        train=_list_files(root / "train", classes),
        test=_list_files(test_folder, classes),
        num_classes=len(classes),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _classes(folder: Path) -> list[str]:
    """Return the class folders in alphabetical order."""
    if not folder.is_dir():
        raise DataError(f"folder {str(folder)!r} must exist and hold one folder of images for each class.")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise DataError(f"folder {str(folder)!r} must hold one folder of images for each class, got none.")
    return classes


def _list_files(folder: Path, classes: list[str]) -> ImageFiles:
    """List the images of every class; the test split must have the classes of the training split."""
    strangers = sorted(set(_classes(folder)) - set(classes))
    if strangers:
        raise DataError(f"folder {str(folder)!r} must have the classes of 'train', got {strangers[0]!r} in addition.")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(str(path) for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        absent = next((path for path in found if not Path(path).is_file()), None)
        if absent is not None:
            raise DataError(f"image {absent!r} must be a file, got a folder or a broken link. Replace or remove it.")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(paths=tuple(paths), labels=torch.tensor(labels, dtype=torch.int64, device="cpu"))
