"""Several processes give the numbers and the plan of one: every method, uneven shares, and an empty share."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hessprune as hp
from hessprune.foundation.processes import (
    by_the_first,
    check_agreement,
    gathered_rows,
    num_processes,
    rank,
    summed,
)
from tests.spawning import SIZE, grouped, spawned

METHODS = (
    "random", "magnitude", "bn_scale", "taylor(precision=fp64)", "nvit(precision=fp64)", "hap(precision=fp64)",
    "hap(estimator=rademacher,precision=fp64)", "hap(estimator=hutchinson,num_probes=4,precision=fp64)",
    "sosp-h(precision=fp64)", "sosp-i(precision=fp64)", "sosp-i(interaction_rows=64,precision=fp64)",
    "joint(precision=fp64)", "joint(refit=false,precision=fp64)",
)  # fmt: skip
BATCHES = (3, 1)
"""Uneven shares of two processes, and an empty one."""


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (30,), generator=generator)
    labels[:11] = -100  # the first batch of three counts for nothing
    return torch.randn(30, 3, 8, 8, generator=generator), labels


def answers() -> dict[str, Any]:
    """Return what every process computes: saliencies, a plan, and a small model's outputs."""
    net, (x, y) = network(), samples()
    groups = hp.find_groups(net, x)
    found: dict[str, Any] = {}
    for number in BATCHES:
        batches = [*zip(x.split(30 // number), y.split(30 // number), strict=True)]
        for method in METHODS:
            values = hp.saliency(net, groups, batches, method)
            found[f"{method} of {number} batches"] = torch.cat([*values.values()])
    result = hp.prune(net, x[:2], [part for part in x.split(8)], budget=hp.Budget(macs=0.6))  # noqa: C416
    found |= {"plan": result.plan.removed, "output": result.model(x[:2]).detach()}
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    if num_processes() > 1:
        sampler = DistributedSampler(loader.dataset, shuffle=False)  # type: ignore[arg-type]
        loader = DataLoader(TensorDataset(x, y), batch_size=10, sampler=sampler)
    found["loader"] = torch.cat([*hp.saliency(net, groups, loader, "joint(precision=fp64)").values()])
    return found


def work(number: int, port: int, folder: str) -> None:
    with grouped(number, port):
        found = answers()
        assert (rank(), num_processes()) == (number, SIZE)
        rows = gathered_rows(torch.full((number, 2), float(number)))
        assert rows.tolist() == [[float(k)] * 2 for k in range(SIZE) for _ in range(k)]
        assert summed(torch.tensor([number], dtype=torch.int64)).tolist() == [SIZE * (SIZE - 1) // 2]
        found["other data"] = raised(
            lambda: hp.saliency(network(), groups_of(), [(torch.randn(4, 3, 8, 8) + number, None)])
        )
        x, later = samples()[0][:8], samples()[0][8:16] + number
        found["other data later"] = raised(lambda: hp.saliency(network(), groups_of(), [x, later], "hap"))
        fewer = [samples()[0].split(8)[k] for k in range(3 - number)]
        found["other counts"] = raised(lambda: hp.saliency(network(), groups_of(), fewer))
        torch.manual_seed(number)
        other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
        found["other weights"] = raised(lambda: hp.prune(other, x[:1], [x], budget=hp.Budget(macs=0.5)))
        method = "magnitude" if number else "taylor"
        found["other method"] = raised(lambda: hp.saliency(network(), groups_of(), [samples()], method))
        found["text"] = by_the_first(lambda: str(rank()) + str(num_processes()) + str(number))
        found["text refused"] = raised(lambda: by_the_first(lambda: str(hp.Budget(macs=-1.0))))
        found["timed"] = timed()
        found["other numbers"] = raised(lambda: check_agreement(number, "the model must be one"))
        torch.save(found, Path(folder) / f"{number}.pt")


def timed() -> Any:
    """Return a plan for a budget of time with its latency, or why there is none: clocks differ, processes must not."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)), torch.randn(16, 64)
    half = hp.Budget(latency_ms="60%", target=hp.LatencyTarget(repeats=2))
    try:
        plan = hp.prune(net, x, [x], budget=half, method="magnitude").plan
    except hp.HessPruneError as error:
        return str(error)
    return plan.removed, plan.provenance["latency"]


def groups_of() -> Any:
    return hp.find_groups(network(), samples()[0])


def raised(call: Any) -> str:
    try:
        call()
    except hp.HessPruneError as error:
        return str(error)
    return ""


@cache
def alone() -> dict[str, Any]:
    return answers()


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    spawned(work, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(SIZE)]


@pytest.mark.parametrize("number", BATCHES)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_sums_of_one(together, method: str, number: int) -> None:
    name = f"{method} of {number} batches"
    for found in together:
        torch.testing.assert_close(found[name], alone()[name], rtol=1e-9, atol=1e-14)
    assert torch.equal(together[0][name], together[1][name])


def test_two_processes_make_the_plan_and_the_model_of_one(together) -> None:
    for found in together:
        assert found["plan"] == alone()["plan"]
        torch.testing.assert_close(found["output"], alone()["output"], rtol=1e-6, atol=1e-7)


def test_a_distributed_sampler_gives_all_samples(together) -> None:
    for found in together:
        torch.testing.assert_close(found["loader"], alone()["loader"], rtol=1e-9, atol=1e-14)


def test_processes_that_differ_are_refused(together) -> None:
    for found in together:
        assert "`batches` must be the same on all processes" in found["other data"]
        assert "`batches` must be the same on all processes" in found["other data later"]
        assert found["other numbers"] == "the model must be one, but the processes differ. Use one process."
        assert "`batches` must be the same on all processes" in found["other counts"]
        assert "`model` must be the same on all processes, got other weights" in found["other weights"]
        assert "`method` must be the same on all processes" in found["other method"]


def test_what_is_measured_by_the_clock_is_measured_by_the_first(together) -> None:
    for found in together:
        assert found["text"] == "010"
        assert "macs" in found["text refused"]
        assert found["timed"] == together[0]["timed"]


def ended(number: int, port: int, folder: str) -> None:
    with grouped(number, port):
        if number:
            Path(folder, "message").write_text(raised(lambda: summed(torch.ones(1))))


def test_the_end_of_another_process_is_one_line(tmp_path) -> None:
    spawned(ended, str(tmp_path))
    assert (tmp_path / "message").read_text().startswith("another process has ended")
