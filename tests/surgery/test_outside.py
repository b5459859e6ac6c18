"""Layers around a stack get the weights that a refit of the whole model gives them, whatever fits into memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.batches import Rereadable
from hessprune.layers.chains import find_stack
from hessprune.surgery import outside, sequential
from hessprune.surgery.calibration import Samples, gather
from hessprune.surgery.outside import Outside
from hessprune.surgery.refitting import refitted
from hessprune.surgery.sequential import refitted_by_block


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))


class Later(Block):
    """Blocks of another stack."""


class Tower(nn.Module):
    """A stem of two layers, two stacks, a layer between them, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.more = nn.Linear(6, 20), nn.Linear(20, 12)
        self.first, self.between = nn.ModuleList(Later(12) for _ in range(2)), nn.Linear(12, 12)
        self.blocks, self.norm = nn.ModuleList(Block(12) for _ in range(3)), nn.LayerNorm(12)
        self.hidden, self.head = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.more(torch.relu(self.stem(x)))
        for block in self.first:
            x = block(x)
        x = self.between(x)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(self.hidden(self.norm(x))))


NET = Tower().double().eval()
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)).double()
UNITS: dict[str, Any] = {"neurons": ("neurons",), "stream": ("embedding",)}


def pruned(units: str) -> tuple[nn.Module, hp.Plan, list[Samples]]:
    """Return what a plan by magnitude leaves, and samples."""
    ranking = hp.Ranking(units=UNITS[units])
    result = hp.prune(
        NET, X[:1], [X], budget=hp.Budget(params=0.7), method="magnitude", ranking=ranking, compensate=False
    )
    return result.model, result.plan, gather(Rereadable.of([X], NET), result.model)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("portion", [60, 7])
def test_all_weights_are_those_of_a_refit_of_the_whole_model(units: str, portion: int, monkeypatch) -> None:
    model, plan, samples = pruned(units)
    monkeypatch.setattr(outside, "most_samples", lambda *_: portion)
    whole, blocks = refitted(NET, model, plan, samples), refitted_by_block(NET, model, plan, samples)
    before, moved = dict(model.named_parameters()), set()
    for name, value in blocks.named_parameters():
        assert torch.allclose(value, whole.get_parameter(name), rtol=1e-6, atol=1e-7), name
        if not torch.allclose(value, before[name], rtol=1e-6, atol=1e-7):
            moved.add(name.partition(".")[0])
    assert {"blocks", "first", "hidden", "head"} <= moved


def test_front_and_back_stand_in_the_order_of_uses() -> None:
    model, plan, _ = pruned("neurons")
    found = Outside.of(model, plan, find_stack(NET, X), X)
    inner = [f"first.{block}.{layer}.weight" for block in (0, 1) for layer in ("first", "second")]
    assert found.front == (*inner[1:], "between.weight")  # from the first on that loses inputs
    assert found.behind == ("hidden.weight", "head.weight")
    assert not any(name.startswith("blocks.") for name in found.tensors)


def test_nothing_in_front_is_refitted_where_nothing_is_lost() -> None:
    groups = hp.find_groups(NET, X[:1])
    saliency = {group.name: torch.full((group.num_units,), 9.0).double() for group in groups}
    one = next(group.name for group in groups if group.name.startswith("blocks"))
    saliency[one] = torch.arange(24.0).double() / 24
    plan = hp.make_plan(NET, groups, saliency, hp.Budget(params=0.95), example_inputs=X[:1])
    found = Outside.of(hp.apply_plan(NET, plan), plan, find_stack(NET, X), X)
    assert found.front == ()
    assert found.behind == ("hidden.weight", "head.weight")


def test_layers_around_the_blocks_are_kept_in_the_folder(tmp_path: Path, monkeypatch) -> None:
    model, plan, samples = pruned("neurons")
    first = refitted_by_block(NET, model, plan, samples, folder=tmp_path)
    calls: list[Any] = []
    refit: Callable[..., None] = outside.refit_layers
    monkeypatch.setattr(sequential, "refit_layers", lambda *args: calls.append(args[-1]) or refit(*args))
    again = refitted_by_block(NET, model, plan, samples, folder=tmp_path)
    assert not calls
    file = tmp_path / "layers-behind.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    mended = refitted_by_block(NET, model, plan, samples, folder=tmp_path)
    assert calls == [("hidden.weight", "head.weight")]
    for other in (again, mended):
        for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-12)


def test_the_embedding_that_is_the_head_too_stays() -> None:
    class Words(Tower):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 12)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.table.weight.T

    net, ids = Words().double().eval(), torch.arange(240).view(40, 6) % 9
    result = hp.prune(net, ids[:1], [ids], budget=hp.Budget(params=0.8), method="magnitude", compensate=False)
    samples = gather(Rereadable.of([ids], net), result.model)
    found = Outside.of(result.model, result.plan, find_stack(net, ids), ids)
    assert not found.behind
    assert "table.weight" not in found.tensors
    after = refitted_by_block(net, result.model, result.plan, samples)
    assert torch.equal(after.get_parameter("table.weight"), result.model.get_parameter("table.weight"))
