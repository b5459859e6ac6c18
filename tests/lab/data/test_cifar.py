"""The original archives: every pickle dialect of plain arrays reads, and no pickle runs anything."""

import io
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch

from hessprune.errors import DataError
from hessprune.lab.data import load_dataset
from hessprune.lab.data.cifar import restricted_load


def pixels(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)


def write_cifar10(folder: Path, protocol: int = 2, key=bytes) -> None:
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        content = {"data": pixels(6, seed), "labels": [0, 1, 2, 3, 8, 9], "batch_label": name}
        content = {key(k, "latin1") if key is bytes else k: value for k, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("key", [bytes, str])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar10_reads(tmp_path, inside, key, protocol):
    write_cifar10(tmp_path / "data" / inside, protocol, key)
    data = load_dataset("cifar10", root=tmp_path / "data", validation_size=10)
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (20, 10, 6, 10)
    assert torch.equal(data.test.images, torch.from_numpy(pixels(6, 5)).reshape(6, 3, 32, 32))
    assert data.test.labels.tolist() == [0, 1, 2, 3, 8, 9]


def test_cifar100_reads_fine_labels(tmp_path):
    for name, num in (("train", 8), ("test", 4)):
        content = {"data": pixels(num), "fine_labels": list(range(96, 96 + 4)) * (num // 4), "coarse_labels": [0] * num}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    data = load_dataset("cifar100", root=tmp_path, validation_size=2)
    assert data.num_classes == 100
    assert data.test.labels.tolist() == [96, 97, 98, 99]


def test_both_generations_of_numpy_names():
    """An archive written by NumPy 1 says numpy.core, by NumPy 2 numpy._core."""
    array = pixels(1)
    for protocol in (2, 4, 5):
        written = pickle.dumps(array, protocol=0 if protocol == 2 else protocol)
        names = {arg for op, arg, _ in pickletools.genops(written) if op.name == "GLOBAL" and "core" in arg}
        for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
            other = written.replace(old, new) if protocol == 2 else written
            assert np.array_equal(restricted_load(io.BytesIO(other)), array)
        assert protocol != 2 or names


class Touch:
    """Pickles to a call of `Path.touch`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def evil(target: Path) -> list[bytes]:
    """Archives that would create `target`: as a whole, as a label, through eval, and through a dotted name."""
    code = f"open({str(target)!r}, 'w')"
    return [
        pickle.dumps(Touch(target)),
        pickle.dumps({"data": pixels(6), "labels": [Touch(target)] * 6}),
        f"cbuiltins\neval\n(V{code}\ntR.".encode(),
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"cposix\nsystem\n(Vtouch " + str(target).encode() + b"\ntR.",
    ]


@pytest.mark.parametrize("case", range(5))
def test_malicious_archive_runs_nothing(tmp_path, case):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "data_batch_3").write_bytes(evil(tmp_path / "ran")[case])
    with pytest.raises(DataError, match=r"data_batch_3' cannot be read \(refused '.*Nothing in it was run"):
        load_dataset("cifar10", root=tmp_path / "data")
    assert not (tmp_path / "ran").exists()


def test_unusual_codec_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="refused encoding 'zlib'"):
        restricted_load(io.BytesIO(b"c_codecs\nencode\n(Vtext\nVzlib\ntR."))


@pytest.mark.parametrize("kept", [0, 3, 500])
def test_truncated_archive(tmp_path, kept):
    write_cifar10(tmp_path / "data")
    path = tmp_path / "data" / "test_batch"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="test_batch' cannot be read"):
        load_dataset("cifar10", root=tmp_path / "data")


def test_missing_batch_is_named(tmp_path):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4' must exist"):
        load_dataset("cifar10", root=tmp_path / "data")


def test_folder_without_archive(tmp_path):
    with pytest.raises(DataError, match="must hold 'data_batch_1' or the folder 'cifar-10-batches-py'"):
        load_dataset("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"data": pixels(6)},
        {"data": pixels(6).astype(np.float32), "labels": [0] * 6},
        {"data": pixels(6)[:, :100], "labels": [0] * 6},
        {"data": pixels(6), "labels": ["a"] * 6},
        {"data": pixels(6), "labels": [2**70] * 6},
        {"data": pixels(6), "labels": [0] * 5},
        {"data": np.broadcast_to(np.uint8(0), (10**6, 3072))[:, :1], "labels": [0] * 10**6},
    ],
)
def test_archive_of_something_else(tmp_path, content):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"must hold 'data', uint8 \(N, 3072\), and integers 'labels'"):
        load_dataset("cifar10", root=tmp_path / "data")


def test_label_out_of_range(tmp_path):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "test_batch").write_bytes(pickle.dumps({"data": pixels(2), "labels": [0, 10]}))
    with pytest.raises(DataError, match=r"labels in `cifar10 test` must be in \[0, 10\)"):
        load_dataset("cifar10", root=tmp_path / "data")
