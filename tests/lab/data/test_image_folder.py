"""Folders of photographs: listing, decoding, the two crops, and what goes wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hessprune.errors import DataError
from hessprune.lab.data import ImageFiles, load_dataset
from hessprune.lab.data.image_folder import centre_box, random_box
from tests.lab.data.samples import bomb, random_pixels


def write(root: Path, sizes: dict[str, int]) -> Path:
    """Write `sizes[folder]` pictures into each folder, every one of another size."""
    for folder, num in sizes.items():
        (root / folder).mkdir(parents=True)
        for seed in range(num):
            Image.fromarray(random_pixels(30 + seed, 40, seed)).save(root / folder / f"{seed}.png")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "pets", {"train/cat": 6, "train/dog": 4, "val/cat": 2, "val/dog": 1})


def test_splits_and_labels(folder):
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset("image-folder", root=folder, validation_size=5)
    assert (data.name, data.num_classes, data.input_shape) == ("pets", 2, (3, 224, 224))
    assert (len(data.train), len(data.validation), data.test.labels.tolist()) == (5, 5, [0, 0, 1])
    assert sorted(data.validation.labels.tolist()) == [0, 0, 0, 1, 1]
    assert not set(data.train.paths) & set(data.validation.paths)


def test_eval_crop_is_resize_then_centre_crop(tmp_path):
    """Against the usual two steps on a picture four times the size, where rounding of the crop does not matter."""
    Image.fromarray(random_pixels(1024, 1024)).save(tmp_path / "a.png")
    files = ImageFiles(paths=(str(tmp_path / "a.png"),), labels=torch.tensor([0]))
    resized = Image.open(tmp_path / "a.png").resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
    assert int((files.read(torch.tensor([0]), None, None)[0].int() - expected.int()).abs().max()) <= 1


def test_boxes_lie_inside_and_vary():
    boxes = []
    for draws in np.random.default_rng(0).random((500, 5)):
        left, upper, right, lower = random_box(300, 200, draws)
        assert 0 <= left < right <= 300 + 1e-9
        assert 0 <= upper < lower <= 200 + 1e-9
        boxes.append((right - left) * (lower - upper) / (300 * 200))
    assert 0.05 < min(boxes) < 0.12
    assert 0.4 < np.mean(boxes) < 0.6
    assert centre_box(300, 200) == (62.5, 12.5, 237.5, 187.5)


def test_batches_are_deterministic_and_resumable(folder):
    data = load_dataset("image-folder", root=folder, validation_size=3).with_image_size(16)
    batches = data.batches("train", 2, augment=True)
    first = list(batches.iterate(1))
    assert first[0][0].shape == (2, 3, 16, 16)
    for (x, y), (u, v) in zip(batches.iterate(1, 1), first[1:], strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    assert not torch.equal(next(batches.iterate(2))[0], first[0][0])


def test_flip_mirrors(folder):
    files = ImageFiles(paths=(str(folder / "train/cat/0.png"),), labels=torch.tensor([0]), size=16)
    zoomed = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.1]])
    flipped, plain = (files.read(torch.tensor([0]), augment, zoomed) for augment in ("crop-flip", "crop"))
    assert torch.equal(flipped, plain.flip(3))
    assert not torch.equal(flipped, plain)


def test_grey_pictures_become_rgb(tmp_path):
    write(tmp_path, {"train/a": 3, "test/a": 1})
    Image.fromarray(random_pixels(20, 20)[..., 0]).save(tmp_path / "test/a/0.png")
    data = load_dataset("image-folder", root=tmp_path).with_image_size(8)
    assert data.test.read(torch.tensor([0]), None, None).shape == (1, 3, 8, 8)


def test_fingerprint_sees_files(folder):
    before = load_dataset("image-folder", root=folder).fingerprint
    assert load_dataset("image-folder", root=folder).fingerprint == before
    (folder / "val" / "dog" / "0.png").write_bytes(b"other")
    assert load_dataset("image-folder", root=folder).fingerprint != before


@pytest.mark.parametrize("keep_times", [False, True])
def test_fingerprint_sees_a_changed_picture_of_the_same_size(folder, keep_times):
    path = folder / "train/cat/0.bmp"
    Image.fromarray(random_pixels(30, 40)).save(path)
    before, times = load_dataset("image-folder", root=folder).fingerprint, path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_dataset("image-folder", root=folder).fingerprint != before


def test_fingerprint_does_not_depend_on_place_or_time(folder):
    before = load_dataset("image-folder", root=folder).fingerprint
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    moved = folder.rename(folder.with_name("moved")).rename(folder)
    assert load_dataset("image-folder", root=moved).fingerprint == before


@pytest.mark.parametrize("kind", ["broken link", "folder", "pipe"])
def test_what_is_no_file_is_named(folder, kind):
    path = folder / "train/cat/x.png"
    {"broken link": lambda: path.symlink_to("nowhere"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(DataError, match=r"x.png' must be a file, got a folder or a broken link. Replace or remove it"):
        load_dataset("image-folder", root=folder)


@pytest.mark.parametrize("side", [9000, 20_000])
def test_a_picture_that_expands_to_gigabytes_is_refused(folder, side):
    (folder / "val/cat/1.png").write_bytes(bomb(side))
    data = load_dataset("image-folder", root=folder)
    with pytest.raises(DataError, match=r"cat/1\.png' cannot be decoded \(.*pixels"):
        list(data.batches("test", 2))


@pytest.mark.parametrize("content", [b"", b"text", "half"])
def test_broken_picture_is_named(folder, content):
    path = folder / "val" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:200] if content == "half" else content)
    data = load_dataset("image-folder", root=folder)
    with pytest.raises(DataError, match=r"cat/1\.png' cannot be decoded"):
        list(data.batches("test", 2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 0}, "train' must hold one folder of images for each class, got none"),
        ({"train/a": 3}, "val' must exist and hold one folder"),
        ({"train/a": 3, "val/b": 1}, "must have the classes of 'train', got 'b' in addition"),
        ({"train/a": 0, "val/a": 1}, "must hold at least 2 training images, got 0"),
        ({"train/a": 3, "val/a": 0}, "split 'test' of .* must hold images"),
    ],
)
def test_wrong_folders(tmp_path, sizes, message):
    with pytest.raises(DataError, match=message):
        load_dataset("image-folder", root=write(tmp_path / "root", sizes))
