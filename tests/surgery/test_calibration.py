"""Calibration samples in memory."""

import torch
from torch import nn

from hessprune.foundation.batches import Rereadable
from hessprune.surgery import calibration
from hessprune.surgery.calibration import gather

MODEL = nn.Conv2d(3, 4, 3, padding=1)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(count, 3, size, size) for count, size in sizes]


def test_batches_of_equal_shape_are_joined_and_others_stand_beside() -> None:
    batches = images((2, 8), (3, 6), (4, 8))
    first, second = gather(Rereadable(batches), MODEL)
    assert torch.equal(first.inputs, torch.cat([batches[0], batches[2]]))
    assert first.places.tolist() == [0, 1, 5, 6, 7, 8]
    assert second.places.tolist() == [2, 3, 4]
    half = first.only(torch.arange(9) % 2 == 0)
    assert half.places.tolist() == [0, 6, 8]
    assert torch.equal(half.inputs, first.inputs[[0, 3, 5]])


def test_targets_follow_their_samples_where_there_is_one_for_each() -> None:
    batches = [(x, {"box": torch.arange(len(x) * 2).view(-1, 2), "one": torch.ones(len(x))}) for x in images((4, 8))]
    (samples,) = gather(Rereadable(batches), MODEL)
    assert samples.only(torch.arange(4) > 1).targets["box"].tolist() == [[4, 5], [6, 7]]
    ragged = [(x, torch.zeros(7, 6)) for x in images((4, 8), (4, 8))]
    apart = gather(Rereadable(ragged), MODEL)
    assert [len(part) for part in apart] == [4, 4], "targets of a batch as a whole"
    assert not apart[0].can_be_split


def test_no_more_is_read_than_memory_holds(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "MEMORY", 4 * calibration.LIVE * (3 + 4) * 64 * 5)  # five images of 8 × 8
    assert [len(part) for part in gather(Rereadable(images((3, 8), (3, 8), (3, 8))), MODEL)] == [5]
