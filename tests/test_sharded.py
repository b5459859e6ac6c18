"""Models that FSDP2 spreads over processes: the saliencies of the whole model, or one line."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.sharded import is_sharded, running_parameters
from hessprune.methods.text import as_method
from tests.spawning import SIZE, grouped, spawned

METHODS = ("random", "magnitude", "taylor", "nvit", "hap", "hap(estimator=rademacher)", "sosp-i", "joint(refit=false)")
REFUSED = ("joint", "sosp-h", "hap(estimator=hutchinson)")


class Block(nn.Module):
    """A residual block of a transformer without attention, with a convolution over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 13), nn.Linear(13, 6)
        self.mix = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.mT).mT
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Two blocks, and a head behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.hidden, self.norm, self.head = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(self.hidden(x.mean(1))).relu())


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(11, 5, 6, generator=generator).to(dtype), torch.randint(4, (11,), generator=generator)
    return [*zip(x.split(4), y.split(4), strict=True)]


def scores(net: nn.Module, groups: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the saliencies by every method, in the precision of the net."""
    found = {}
    for each in METHODS:
        method = as_method(each)
        method = (
            replace(method, precision="fp64") if dtype is torch.float64 and hasattr(method, "precision") else method
        )
        found[each] = torch.cat([*hp.saliency(net, groups, batches(dtype), method).values()])
    return found


@cache
def alone(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    net = Net().to(dtype).eval()
    return scores(net, hp.find_groups(net, batches(dtype)[0][0]), dtype)


def work(number: int, port: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    with grouped(number, port):
        net = Net().train()
        groups = hp.find_groups(net, batches()[0][0])
        mesh = dist.init_device_mesh("cpu", (SIZE,))
        precise, half = Net().double(), Net().bfloat16()
        for whole in (net, precise, half):
            for block in whole.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(whole, mesh=mesh)
        found: dict[str, Any] = {**scores(net, groups), "precise": scores(precise, groups, torch.float64)}
        found["half"] = scores(half, groups, torch.bfloat16)
        found["sharded"] = is_sharded(net)
        found["held"] = sum(parameter.to_local().numel() for parameter in net.parameters())  # type: ignore[attr-defined]
        found["empty"] = all(not p.untyped_storage().size() for p in running_parameters(net.blocks[0]).values())
        found["mode"] = all(module.training for module in net.modules())
        found["gradients"] = any(parameter.grad is not None for parameter in net.parameters())
        found["refused"] = {
            each: raised(lambda each=each: hp.saliency(net, groups, batches(), each)) for each in REFUSED
        }
        found["double"] = raised(lambda: hp.saliency(net, groups, batches(), "taylor(precision=fp64)"))
        found["groups"] = raised(lambda: hp.find_groups(net, batches()[0][0]))
        net(batches()[0][0]).sum().backward()  # training goes on
        found["trains"] = all(parameter.grad is not None for parameter in net.parameters())
        torch.save(found, Path(folder) / f"{number}.pt")


def raised(call: Any) -> str:
    try:
        call()
    except (ArgumentError, UnsupportedModelError) as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    spawned(work, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(SIZE)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_model_has_the_saliencies_of_the_whole_one(together, method: str) -> None:
    for found in together:
        scale = float(alone()[method].abs().max())
        torch.testing.assert_close(found[method], alone()[method], rtol=1e-5, atol=1e-6 * scale)
        precise = alone(torch.float64)[method]  # where rounding of single precision is out of the way
        torch.testing.assert_close(found["precise"][method], precise, rtol=1e-9, atol=1e-14)
    assert torch.equal(together[0][method], together[1][method])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_sharded_model_in_bfloat16_has_about_the_same(together, method: str) -> None:
    for found in together:
        scale = float(alone()[method].abs().max())
        torch.testing.assert_close(found["half"][method], alone()[method], rtol=0.1, atol=0.03 * scale)


@pytest.mark.slow
def test_it_stays_sharded_and_trains_on(together) -> None:
    whole = sum(parameter.numel() for parameter in Net().parameters())
    assert sum(found["held"] for found in together) == whole
    for found in together:
        assert found["sharded"]
        assert found["mode"]
        assert found["trains"]
        assert not found["gradients"]


@pytest.mark.slow
def test_what_needs_whole_weights_is_refused_in_one_line(together) -> None:
    for found in together:
        for method, message in found["refused"].items():
            assert "must score with ordinary backward passes" in message, method
            assert "\n" not in message
        assert "`precision` must be that of a sharded model's weights, got 'fp64'" in found["double"]
        assert "`model` must be whole here" in found["groups"]
