"""Samples by one text, as large and as normalised as the model expects them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hessprune.errors import ArgumentError, DataError
from hessprune.lab.calibration import _kind, open_calibration
from hessprune.lab.data.image_folder import IMAGENET_MEAN
from tests import huggingface


def write_images(root: Path, number: int = 4, size: int = 40) -> Path:
    image = pytest.importorskip("PIL.Image")
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("ant", "bee"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(number):
                image.fromarray(draws.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def write_npz(path: Path) -> Path:
    images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 2
    images[..., 0] = np.arange(20)[:, None, None]
    np.savez(path, train_images=images + 3, train_labels=labels, test_images=images, test_labels=labels)
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train/a/1.png"], "image-folder"),
        (["train.tsv", "test.tsv"], "tsv"),
        (["data_batch_1"], "cifar10"),
        (["train.parquet"], "parquet"),
        (["all.npz"], "npz"),
        (["meta", "train"], "cifar100"),
        (["readme.txt"], None),
    ],
)
def test_the_kind_of_a_folder_is_told_by_its_names(names, kind, tmp_path):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert _kind(tmp_path) == kind


def test_files_and_named_sources(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    for text in (str(path), f"npz:{path}", str(tmp_path)):
        found = open_calibration(text, "resnet20", samples=5)
        assert (len(found.data.calibration), found.num_classes, found.in_channels) == (5, 2, 3)
    with pytest.raises(ArgumentError, match=r"`calibration` must be SOURCE:PATH .* image-folder:PATH"):
        open_calibration("nowhere", "resnet20")
    with pytest.raises(DataError, match="existing folder"):
        open_calibration("npz:nowhere.npz", "resnet20")


def test_image_folders_are_read_at_the_size_and_in_the_normalisation_of_the_package(tmp_path):
    package = huggingface.package("timm")
    model = package.create_model("resnet10t", num_classes=2)
    found = open_calibration(f"image-folder:{write_images(tmp_path)}", "timm:resnet10t", samples=4)
    fitted = found.fitted_to(model, None)
    assert fitted.example.shape == (1, 3, 176, 176)
    assert fitted.data.mean == IMAGENET_MEAN
    assert "as the model's package says" in fitted.notes[0]
    assert found.fitted_to(model, (3, 32, 32)).example.shape == (1, 3, 32, 32)


def test_images_in_memory_keep_their_size(tmp_path):
    found = open_calibration(str(write_npz(tmp_path / "a.npz")), "resnet20", samples=4)
    fitted = found.fitted_to(nn.Identity(), None)
    assert fitted.example.shape == (1, 3, 8, 8)
    assert "own statistics" in fitted.notes[0]
    with pytest.raises(ArgumentError, match=r"`shape` must be that of the samples.*write 3,8,8"):
        found.fitted_to(nn.Identity(), (3, 9, 9))


def test_a_folder_of_transformers_says_its_normalisation(tmp_path):
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    found = open_calibration(str(write_npz(tmp_path / "a.npz")), f"hf:{folder}", samples=4)
    assert found.fitted_to(nn.Identity(), None).data.mean == (0.5, 0.5, 0.5)
    assert torch.allclose(found.fitted_to(nn.Identity(), None).example[0, 1], torch.tensor(3 / 255 * 2 - 1))
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(DataError, match="must hold image_mean and image_std"):
        found.fitted_to(nn.Identity(), None)
