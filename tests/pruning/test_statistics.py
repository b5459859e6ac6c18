"""Statistics are kept in a file, printed in five lines, and refused where they do not belong."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import hessprune as hp
from hessprune.errors import ArgumentError, CheckpointError
from hessprune.pruning.statistics import Statistics
from tests.pruning.test_measuring import BATCHES, NET, X


@pytest.fixture(scope="module")
def stats() -> Statistics:
    return hp.measure(NET, X[:1], BATCHES, method=("joint", "sosp-i"))


def test_a_file_keeps_everything(stats: Statistics, tmp_path) -> None:
    back = hp.Statistics.load(stats.save(tmp_path / "deep" / "stats.safetensors"))
    assert (back.origin, back.num_samples, back.seconds) == (stats.origin, stats.num_samples, stats.seconds)
    assert back.moments is not None
    assert stats.moments is not None
    assert back.moments.keys() == stats.moments.keys() != set()
    for method in ("joint", "sosp-i"):
        first, second = (
            hp.prune(NET, X[:1], BATCHES, method=method, budget=hp.Budget(macs=0.6), stats=each)
            for each in (stats, back)
        )
        assert first.plan == second.plan
        assert torch.equal(first.model(X), second.model(X))


def test_they_print_in_five_lines(stats: Statistics) -> None:
    lines = str(stats).split("\n")
    assert len(lines) == 5
    assert lines[0] == "saliencies by joint(refit=True), sosp-i: 20 units in 2 groups"
    assert lines[1].startswith("input moments of 2 layers, ")
    assert lines[2] == "24 samples, loss: dense outputs, seed 0"
    assert repr(stats) == str(stats)


@pytest.mark.parametrize("name", ["model", "architecture", "groups", "data", "loss", "outputs", "seed"])
def test_each_difference_is_named(stats: Statistics, name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"must be measured on the same {name}, got .* instead of"):
        stats.check(replace(stats.origin, **{name: "other"}))
    stats.check(stats.origin)


def test_answers_are_compared_as_far_as_machines_round_alike(stats: Statistics) -> None:
    numbers = stats.origin.answers
    stats.check(replace(stats.origin, answers=tuple(1.0001 * number for number in numbers)))
    with pytest.raises(ArgumentError, match=r"same outputs of the model, got .* instead of"):
        stats.check(replace(stats.origin, answers=tuple(1.01 * number for number in numbers)))
    with pytest.raises(ArgumentError, match="same value of the loss, got"):
        stats.check(replace(stats.origin, value=(1.0,)))


def test_damaged_files_are_named(stats: Statistics, tmp_path) -> None:
    file = stats.save(tmp_path / "stats.safetensors")
    data = file.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    listed = data.replace(b'saliencies\\": {', b'saliencies\\": [').replace(b'saliencies\\":{', b'saliencies\\":[')
    assert listed != data
    for damaged in (data[: len(data) // 2], b"", data.replace(b"covariance:", b"kovariance:"), flipped, listed):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"must hold statistics, got .*hp.measure\(…\).save"):
            Statistics.load(file)
    with pytest.raises(CheckpointError, match="must hold statistics, got FileNotFoundError"):
        Statistics.load(tmp_path / "absent")
    save_file({}, file, metadata={"hessprune_statistics": '{"format": 99}'})
    with pytest.raises(CheckpointError, match=r"^file '[^']*' has format 99"):
        Statistics.load(file)
