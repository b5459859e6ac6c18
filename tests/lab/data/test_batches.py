"""Batches: normalised, re-iterable, and functions of (seed, epoch) alone."""

import re
import time

import pytest
import torch

from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_batches
from hessprune.lab.data import ImageArrays, ImageBatches
from hessprune.lab.data.batches import one_ahead
from tests.lab.data.samples import random_arrays

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def make(num: int = 10, **options) -> ImageBatches:
    return ImageBatches(random_arrays(num), **{"batch_size": 4, "mean": MEAN, "std": STD, **options})


def same(left, right) -> bool:
    left, right = list(left), list(right)
    return len(left) == len(right) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


def test_values_are_normalised():
    batches = make()
    images = torch.cat([x for x, _ in batches])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(images, (random_arrays(10).images / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert images.dtype == torch.float32
    assert torch.equal(torch.cat([y for _, y in batches]), random_arrays(10).labels)
    check_batches(batches)


@pytest.mark.parametrize(("num", "drop_last", "sizes"), [(10, False, [4, 4, 2]), (10, True, [4, 4]), (8, True, [4, 4])])
def test_lengths(num, drop_last, sizes):
    batches = make(num, drop_last=drop_last)
    assert [len(y) for _, y in batches] == sizes
    assert len(batches) == len(sizes)
    assert batches.num_samples == sum(sizes)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    batches = make(shuffle=True, augment="crop-flip")
    first = list(batches)
    torch.manual_seed(123)
    assert same(batches, first)
    assert same(make(shuffle=True, augment="crop-flip").iterate(0), first)
    batches.set_epoch(1)
    assert not same(batches, first)
    assert same(batches, make(shuffle=True, augment="crop-flip").iterate(1))
    assert not same(make(shuffle=True, augment="crop-flip", seed=1), first)


def test_order_and_augmentation_both_change_with_the_epoch():
    shuffled, cropped = make(shuffle=True), make(augment="crop-flip")
    for batches in (shuffled, cropped):
        epochs = [torch.cat([x for x, _ in batches.iterate(epoch)]) for epoch in (0, 1)]
        assert not torch.equal(*epochs)


def test_reading_leaves_the_random_state():
    before = torch.random.get_rng_state()
    list(make(shuffle=True, augment="crop"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_sample_once_an_epoch():
    order = make(shuffle=True)._order(3)
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_iteration_from_the_middle(start):
    batches = make(shuffle=True, augment="crop-flip", seed=3)
    assert same(batches.iterate(2, start), list(batches.iterate(2))[start:])


def test_augmentation_does_not_depend_on_the_batch_size():
    images = [torch.cat([x for x, _ in make(augment="crop-flip", batch_size=size)]) for size in (1, 4, 10)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_start_step_reads_nothing_before_it(monkeypatch):
    batches = make(shuffle=True)
    asked = []
    read = type(batches.arrays).read
    monkeypatch.setattr(
        type(batches.arrays), "read", lambda self, rows, *rest: asked.append(rows) or read(self, rows, *rest)
    )
    list(batches.iterate(0, 2))
    assert [len(rows) for rows in asked] == [2]


def test_an_epoch_of_cifar_size_is_fast():
    images = torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8)
    arrays = ImageArrays(images=images, labels=torch.zeros(50_000, dtype=torch.int64))
    batches = ImageBatches(arrays, batch_size=128, mean=MEAN, std=STD, shuffle=True, augment="crop-flip")
    start = time.process_time()
    assert sum(len(labels) for _, labels in batches) == batches.num_samples == 50_000
    assert time.process_time() - start < 6  # 0.8 s on one core


def test_one_ahead_keeps_order_and_raises():
    chunks = torch.arange(7).split(2)
    assert [c.tolist() for c in one_ahead(lambda rows: rows * 2, chunks)] == [[0, 2], [4, 6], [8, 10], [12]]
    assert list(one_ahead(lambda rows: rows, ())) == []
    with pytest.raises(DataError, match="broken"):
        list(one_ahead(_broken, chunks))


def _broken(rows: torch.Tensor) -> torch.Tensor:
    raise DataError("broken")


def test_empty_data_are_refused():
    with pytest.raises(DataError, match="must hold at least 1 images for one batch, got 0"):
        make(0)
    with pytest.raises(DataError, match="must hold at least 4 images for one batch, got 3"):
        make(3, drop_last=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"augment": "crop-flop"}, "Did you mean 'crop-flip'?"),
        ({"mean": (0.5,)}, "`mean` must hold 3 finite numbers"),
        ({"std": (0.5, 0.5, float("nan"))}, "`std` must hold 3 finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "`std` must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        make(**options)


@pytest.mark.parametrize(("epoch", "start", "name"), [(-1, 0, "epoch"), (0, 4, "start_step")])
def test_wrong_place_is_refused(epoch, start, name):
    with pytest.raises(ArgumentError, match=f"`{name}` must be an integer"):
        list(make().iterate(epoch, start))
    with pytest.raises(ArgumentError, match="`epoch` must be an integer"):
        make().set_epoch(0.5)
