"""NumPy archives: layouts, and one clear line for each way to get them wrong."""

import numpy as np
import pytest
import torch

from hessprune.errors import DataError
from hessprune.lab.data import load_dataset


def arrays(num: int = 8, channels: int | None = 3) -> dict[str, np.ndarray]:
    shape = (num, 6, 5) if channels is None else (num, 6, 5, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(num) % 4
    return {"train_images": images, "train_labels": labels, "test_images": images[::-1], "test_labels": labels[::-1]}


@pytest.mark.parametrize(("channels", "shape"), [(3, (3, 6, 5)), (1, (1, 6, 5)), (None, (1, 6, 5))])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_file_or_folder(tmp_path, channels, shape, save):
    save(tmp_path / "images.npz", **arrays(channels=channels))
    for root in (tmp_path, tmp_path / "images.npz"):
        data = load_dataset("npz", root=root, validation_size=4)
        assert (data.name, data.num_classes, data.input_shape) == ("images", 4, shape)
        expected = arrays(channels=channels)["test_images"].reshape(8, 6, 5, -1).transpose(0, 3, 1, 2).copy()
        assert torch.equal(data.test.images, torch.from_numpy(expected))
        assert data.test.labels.tolist() == [3, 2, 1, 0, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "must hold test_labels, got train_images"),
        ({"train_images": np.zeros((8, 6, 5, 3))}, "'train_images' .* must be uint8"),
        ({"train_images": np.zeros((8, 6), dtype=np.uint8)}, r"must be uint8 \(N, H, W, C\)"),
        ({"train_labels": np.zeros(8)}, "'train_labels' .* must be integers"),
        ({"train_labels": np.zeros(7, dtype=int)}, r"`labels` must be an int64 tensor \(8,\)"),
        ({"test_labels": np.full(8, 4)}, r"labels in `images test` must be in \[0, 4\)"),
        ({"train_labels": np.full(8, -1)}, "labels in `images train` must be in"),
        ({"train_images": np.zeros((0, 6, 5, 3), dtype=np.uint8), "train_labels": np.zeros(0, int)}, "at least 2"),
        ({"train_images": np.array([{}] * 8)}, "cannot be read"),
    ],
)
def test_wrong_archives(tmp_path, changes, message):
    content = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez(tmp_path / "images.npz", **content)
    with pytest.raises(DataError, match=message):
        load_dataset("npz", root=tmp_path)


@pytest.mark.parametrize("kept", [0, 100, -50])
def test_truncated_archive(tmp_path, kept):
    np.savez_compressed(tmp_path / "images.npz", **arrays())
    (tmp_path / "images.npz").write_bytes((tmp_path / "images.npz").read_bytes()[:kept])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("npz", root=tmp_path)


def test_two_archives_are_ambiguous(tmp_path):
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **arrays())
    with pytest.raises(DataError, match=r"folder with exactly one, got .* \(2\)"):
        load_dataset("npz", root=tmp_path)


def test_an_archive_that_expands_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", **arrays(num=4000) | {"train_images": np.zeros((4000, 6, 5, 3), "u1")})
    monkeypatch.setattr("hessprune.lab.data.arrays.os.sysconf", lambda name: 256)
    with pytest.raises(DataError, match=r"bomb.npz' must fit the memory of 65\.5 kB, got .*Give fewer or smaller ones"):
        load_dataset("npz", root=tmp_path)


def test_a_damaged_label_does_not_decide_the_size_of_the_model(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays() | {"train_labels": np.array([0, 1, 2, 3, 0, 1, 2, 2**40])})
    with pytest.raises(DataError, match=r"a.npz' must be below 1,048,576, got 1,099,511,627,776. Renumber"):
        load_dataset("npz", root=tmp_path)


@pytest.mark.parametrize("position", [0, 26, -40])
def test_a_flipped_byte_is_one_line(tmp_path, position):
    np.savez_compressed(tmp_path / "a.npz", **arrays())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[position] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.npz' cannot be read|must hold") as caught:
        load_dataset("npz", root=tmp_path)
    assert "\n" not in str(caught.value)
