"""Parquet in the Hugging Face layout: encoded images of both formats, shards, and clear refusals."""

import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hessprune.errors import DataError
from hessprune.lab.data import load_dataset
from tests.lab.data.samples import SHARED, bomb, encoded, random_pixels


def write(path: Path, images: list[bytes | None], labels: list, *, image: str = "image", label: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = pa.array([{"bytes": item, "path": None} for item in images])
    pq.write_table(pa.table({image: column, label: pa.array(labels)}), path)


def pictures(num: int, image_format: str = "PNG") -> list[bytes]:
    return [encoded(random_pixels(8, 10, seed), image_format) for seed in range(num)]


@pytest.mark.parametrize(
    "names", [("train.parquet", "test.parquet"), ("data/train-00000.parquet", "data/val-0.parquet")]
)
@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_png_is_lossless(tmp_path, names, image, label):
    for name, num in zip(names, (6, 3), strict=True):
        write(tmp_path / name, pictures(num), [0, 1, 2] * (num // 3), image=image, label=label)
    data = load_dataset("parquet", root=tmp_path, validation_size=3)
    expected = np.stack([random_pixels(8, 10, seed) for seed in range(3)]).transpose(0, 3, 1, 2).copy()
    assert torch.equal(data.test.images, torch.from_numpy(expected))
    assert data.test.labels.tolist() == [0, 1, 2]
    assert (data.num_classes, len(data.train), len(data.validation)) == (3, 3, 3)


def test_jpeg_decodes_as_pillow_does(tmp_path):
    for name in ("train.parquet", "test.parquet"):
        write(tmp_path / name, pictures(4, "JPEG"), [0, 1, 0, 1])
    image = load_dataset("parquet", root=tmp_path).test.images[3].permute(1, 2, 0)
    assert np.array_equal(image.numpy(), np.asarray(Image.open(io.BytesIO(pictures(4, "JPEG")[3]))))


def test_grey_keeps_one_channel_and_shards_join_in_order(tmp_path):
    grey = [encoded(random_pixels(8, 8, seed)[..., 0]) for seed in range(4)]
    write(tmp_path / "train-00001.parquet", grey[2:], [1, 1])
    write(tmp_path / "train-00000.parquet", grey[:2], [0, 0])
    write(tmp_path / "test.parquet", grey, [0, 0, 1, 1])
    data = load_dataset("parquet", root=tmp_path, validation_size=1)
    assert data.input_shape == (1, 8, 8)
    assert torch.equal(data.test.images[0, 0], torch.from_numpy(random_pixels(8, 8, 0)[..., 0].copy()))
    assert len(data.train) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([*pictures(2), b"no image"], [0, 1, 0], "image in row 2 of .* cannot be decoded"),
        ([*pictures(2), pictures(1)[0][:60]], [0, 1, 0], "image in row 2 of .* cannot be decoded"),
        ([bomb(), *pictures(2)], [0, 1, 0], "image in row 0 of .* cannot be decoded .*pixels"),
        ([bomb(9000), *pictures(2)], [0, 1, 0], "image in row 0 of .* cannot be decoded .*9000 x 9000 pixels"),
        ([*pictures(2), b"%!PS-Adobe-3.0 EPSF-3.0"], [0, 1, 0], "image in row 2 of .* cannot be decoded"),
        ([*pictures(2), None], [0, 1, 0], "image in row 2 of .* cannot be decoded"),
        ([*pictures(2), encoded(random_pixels(9, 10))], [0, 1, 0], "must have one size, got .* in row 2"),
        (pictures(3), [0, None, 1], "must be integers without gaps, got float64"),
        (pictures(3), ["a", "b", "c"], "must be integers without gaps"),
        (pictures(3), [-1, -1, -1], "labels in `.* test` must be in"),
    ],
)
def test_wrong_rows(tmp_path, images, labels, message):
    write(tmp_path / "train.parquet", pictures(4), [0, 1, 0, 1])
    write(tmp_path / "test.parquet", images, labels)
    with pytest.raises(DataError, match=message):
        load_dataset("parquet", root=tmp_path)


def test_wrong_columns(tmp_path):
    write(tmp_path / "train.parquet", pictures(2), [0, 1], image="picture")
    with pytest.raises(DataError, match=r"must have columns image or img and .*, got picture, label"):
        load_dataset("parquet", root=tmp_path)


def test_image_column_without_bytes(tmp_path):
    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"column 'image' of .* must be a struct with a field 'bytes'"):
        load_dataset("parquet", root=tmp_path)


@pytest.mark.parametrize("content", [[1, 2], ["a", "b"], [["a"], ["b"]]], ids=["numbers", "texts", "lists"])
def test_bytes_that_are_none(tmp_path, content):
    column = pa.array([{"bytes": item, "path": ""} for item in content])
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"image in row 0 of .* cannot be decoded|must be a struct"):
        load_dataset("parquet", root=tmp_path)


def test_a_damaged_label_does_not_decide_the_size_of_the_model(tmp_path):
    for name in ("train.parquet", "test.parquet"):
        write(tmp_path / name, pictures(2), [0, 2**40])
    with pytest.raises(DataError, match=r"must be below 1,048,576, got 1,099,511,627,776"):
        load_dataset("parquet", root=tmp_path)


def test_no_rows(tmp_path):
    column = pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": column, "label": pa.array([], pa.int64())}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="must hold at least one row"):
        load_dataset("parquet", root=tmp_path)


def test_truncated_file(tmp_path):
    write(tmp_path / "train.parquet", pictures(2), [0, 1])
    (tmp_path / "train.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_dataset("parquet", root=tmp_path)


def test_missing_split(tmp_path):
    write(tmp_path / "train.parquet", pictures(2), [0, 1])
    with pytest.raises(DataError, match=r"must hold 'test\*.parquet' or 'val\*.parquet'"):
        load_dataset("parquet", root=tmp_path)


def test_two_data_sets_below_root(tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / folder / "train.parquet", pictures(2), [0, 1])
    with pytest.raises(DataError, match=r"`root` must hold one data set, got .*one'.*two'"):
        load_dataset("parquet", root=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs CIFAR-10 in ../shared/data")
def test_real_images_decode_fast(tmp_path):
    rows = pq.read_table(SHARED / "cifar10_jpeg" / "test.parquet")
    pq.write_table(rows.slice(0, 1500), tmp_path / "train.parquet")
    pq.write_table(rows.slice(1500, 500), tmp_path / "test.parquet")
    start = time.process_time()
    data = load_dataset("parquet", root=tmp_path)
    assert time.process_time() - start < 3  # 0.35 s on one core: 60 000 images in 10 s
    assert data.num_classes == 10
    assert data.input_shape == (3, 32, 32)
