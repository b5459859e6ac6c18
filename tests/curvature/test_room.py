"""Memory is stated before the work, and kept: statistics beyond a limit lie in files and change no number."""

import logging

import pytest
import torch
from torch import nn

import hessprune as hp
from hessprune.curvature import elimination_path, room
from hessprune.errors import ArgumentError
from hessprune.foundation import shelf as shelves

torch.manual_seed(0)  # in one network of twenty, dead units tie, and rounding chooses between them
NET = nn.Sequential(nn.Linear(6, 96), nn.ReLU(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TIGHT = 100_000
"""Bytes that hold a sample, and neither `8 · 96²` bytes three times nor 24 changed weights."""


@pytest.fixture
def kept(monkeypatch) -> list[shelves.Shelf]:
    """The shelves of the calls of a test."""
    found: list[shelves.Shelf] = []

    class Watched(shelves.Shelf):
        most_in_memory = most_in_files = 0

        def zeros(self, *shape, **options):
            tensor = super().zeros(*shape, **options)
            self.most_in_memory = max(self.most_in_memory, self.in_memory)
            self.most_in_files = max(self.most_in_files, self.in_files)
            return tensor

    def watched(*arguments):
        result, estimate = room.room_for(*arguments)
        found.append(Watched(result.limit))
        return found[-1], estimate

    monkeypatch.setattr(elimination_path, "room_for", watched)
    return found


def plan(**options):
    return hp.prune(NET, X[:1], [X], budget=hp.Budget(macs=0.5), method=hp.Joint(**options), compensate=False)


def test_a_tight_limit_is_kept_and_gives_the_same_plan(kept) -> None:
    free, tight = plan(refit=True), plan(refit=True, memory_limit=TIGHT)
    assert free.plan.removed == tight.plan.removed
    for name, values in free.saliency.items():  # chunks differ
        torch.testing.assert_close(tight.saliency[name], values, rtol=1e-4, atol=1e-7 * float(values.max()))
    assert kept[0].most_in_files == 0
    assert kept[1].most_in_files > 8 * 96**2
    assert kept[1].most_in_memory <= kept[1].limit < TIGHT


def test_the_estimate_comes_before_the_work(kept, caplog) -> None:
    with caplog.at_level(logging.INFO, "hessprune.curvature.room"):
        plan(refit=True)
        plan(refit=True, memory_limit=TIGHT)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("elimination: estimated: ")
    assert first.endswith("1 s")
    assert "100 kB, " in second
    assert " in files" in second
    assert len(kept) == 2


def test_the_estimate_bounds_what_is_taken(kept, monkeypatch) -> None:
    estimates = []
    original = room.estimated
    monkeypatch.setattr(room, "estimated", lambda *a: estimates.append((a[0], original(*a))) or estimates[-1][1])
    plan(refit=True)
    problem, estimate = estimates[0]
    assert kept[0].most_in_memory <= estimate.in_memory - problem.peak_bytes <= 2 * kept[0].most_in_memory


def test_a_full_disk_is_named_before_the_work(monkeypatch) -> None:
    monkeypatch.setattr(room, "free_disk", lambda: 10)
    with pytest.raises(ArgumentError, match=r"Write memory_limit=\d+, or free the disk") as caught:
        plan(refit=True, memory_limit=TIGHT)
    advised = int(str(caught.value).rpartition("memory_limit=")[2].partition(",")[0])
    assert plan(refit=True, memory_limit=advised).plan.num_removed
    with pytest.raises(ArgumentError, match="`memory_limit` must hold the activations of one sample"):
        plan(refit=True, memory_limit=10)
