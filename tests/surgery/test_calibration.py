"""Calibration samples in memory."""

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.batches import Rereadable
from hessprune.surgery import calibration
from hessprune.surgery.calibration import behind, gather, holds_few, judging
from hessprune.surgery.compensation import held_out, left_out

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


def test_every_fifth_sample_judges_by_its_place_in_the_data() -> None:
    first, second = judging(gather(Rereadable(images((2, 8), (3, 6), (7, 8))), MODEL))
    assert first.tolist() == [True, False, True, False, False, False, False, True, False]
    assert not second.any()
    (left,) = judging([part.only(torch.arange(20) % 5 > 0) for part in gather(Rereadable(images((20, 8))), MODEL)])
    assert left.nonzero().flatten().tolist() == [0, 5, 10, 15], "of those that a trial leaves"


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


def test_samples_behind_the_first_ones_come_in_parts() -> None:
    batches = Rereadable([(torch.arange(5.0)[:, None], torch.arange(5)), (5 + torch.arange(5.0)[:, None], None)])
    found = list(behind(batches, 3, size=2, number=4))
    assert [inputs.flatten().tolist() for inputs, _ in found] == [[3, 4], [5, 6]]
    assert found[0][1].tolist() == [3, 4]
    assert list(behind(batches, 10, size=2, number=4)) == []


def test_targets_of_a_whole_batch_come_with_all_of_its_samples() -> None:
    batches = Rereadable([(torch.zeros(4, 1), torch.zeros(7)), (torch.ones(4, 1), torch.zeros(3))])
    (found,) = behind(batches, 2, size=2, number=2)
    assert found[0].flatten().tolist() == [1, 1, 1, 1]


def test_memory_holds_few_samples_where_it_holds_less_than_half(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(3, 5), torch.zeros(12, 3)
    monkeypatch.setattr(calibration, "MEMORY", 16 * 8 * 6)
    assert [holds_few(model, Rereadable([x[:size]])) for size in (11, 12)] == [False, False]
    assert holds_few(model, Rereadable([x, x[:1]]))


def test_single_samples_are_joined_where_two_of_them_show_that_targets_are_theirs() -> None:
    x, y = torch.randn(12, 3, 8, 8), torch.randn(12, 4)
    asked = []

    def splits(inputs: Tensor, targets: Tensor) -> bool:
        asked.append(len(inputs))
        return bool(targets.shape == (2, 4))

    (whole,) = gather(Rereadable([*zip(x.split(1), y.split(1), strict=True)]), MODEL, splits=splits)
    assert asked == [2]
    assert len(whole) == 12
    apart = gather(Rereadable([*zip(x.split(1), y.split(1), strict=True)]), MODEL, splits=lambda *_: False)
    assert [len(part) for part in apart] == [1] * 12


def test_a_part_that_stays_whole_judges_or_fits() -> None:
    x, boxes = torch.randn(12, 3, 8, 8), torch.randn(12, 2, 4)
    parts = gather(Rereadable([*zip(x.split(2), boxes.split(2), strict=True)]), MODEL, splits=lambda *_: False)
    test = held_out(parts)
    judges = left_out(parts, test)
    assert [len(part) for part in judges] == [2, 2]
    fitting = [part for part in parts if bool((~test)[part.places].any())]
    assert not {id(part) for part in fitting} & {id(part) for part in judges}
    (lone,) = parts[:1]
    assert len(left_out([lone], held_out([lone]))) == 1
