"""Tensors beyond a limit lie in files, with the same numbers, and give their bytes back."""

import tempfile
from pathlib import Path

import torch

from hessprune.foundation.shelf import Shelf, free_disk


def test_files_hold_what_memory_does_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf(limit=1000)
    small, large = shelf.zeros(5, 5), shelf.zeros(2, 10, 10)
    assert (shelf.in_memory, shelf.in_files) == (200, 1600)
    assert not list(Path(tmp_path).iterdir())  # files have no name, so that a killed process leaves none
    a = torch.randn(2, 10, 10, dtype=torch.float64)
    large += a
    assert torch.equal(large @ large, a @ a)
    assert not small.any()
    part = large[0]
    del large
    assert shelf.in_files == 0
    assert torch.equal(part, a[0])  # a view keeps the file
    assert shelf.zeros(3, dtype=torch.float32).dtype == torch.float32


def test_without_a_limit_all_is_in_memory() -> None:
    shelf = Shelf()
    held = shelf.zeros(100, 100)
    assert (held.shape, shelf.in_files) == ((100, 100), 0)
    assert free_disk() > 0
