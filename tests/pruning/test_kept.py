"""`hp.prune(sequential=…)`: the same plan, a refit block by block, and with a folder nothing is measured twice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import ArgumentError, HessPruneError, UnsupportedModelError
from hessprune.foundation.batches import Rereadable
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.judging import mean_loss
from hessprune.pruning import prune as pruning
from hessprune.surgery import sequential


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(12), nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


def tower() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), *(Block() for _ in range(3)), nn.Linear(12, 4)).double().eval()


NET = tower()
X = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)).double()
BATCHES = [*X.split(20)]


def prune(**options: Any) -> hp.PruneResult:
    return hp.prune(NET, X[:1], BATCHES, **{"budget": hp.Budget(params=0.6)} | options)


def distance(result: hp.PruneResult) -> float:
    batches = Rereadable.of(BATCHES, NET)
    return mean_loss(choose_objective(NET, batches), NET, result.model, batches)


def test_the_plan_is_the_same_and_the_refit_helps() -> None:
    whole, blocks, bare = prune(), prune(sequential=True), prune(compensate=False, method=hp.Joint(refit=True))
    assert whole.plan.removed == blocks.plan.removed == bare.plan.removed
    assert blocks.cost_after == whole.cost_after
    assert distance(blocks) < 0.8 * distance(bare)


def test_a_folder_keeps_saliencies_and_blocks(tmp_path: Path, monkeypatch) -> None:
    first = prune(sequential=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "saliencies.safetensors",
        *(f"block-{number:03d}.safetensors" for number in range(3)),
        "layers-behind.safetensors",
    }

    def never(*_: Any) -> None:
        raise AssertionError("nothing may be measured or fitted again")

    with monkeypatch.context() as patched:
        patched.setattr(pruning, "score", never)
        patched.setattr(sequential, "_fit", never)
        patched.setattr(sequential, "refit_layers", never)
        again = prune(sequential=str(tmp_path))
    assert again.plan == first.plan
    for mine, theirs in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with monkeypatch.context() as patched:
        patched.setattr(sequential, "_fit", never)
        patched.setattr(pruning, "score", never)
        with pytest.raises(AssertionError, match="again"):  # the saliencies serve another budget, the blocks do not
            prune(sequential=tmp_path, budget=hp.Budget(params=0.5))


def test_damaged_saliencies_and_those_of_other_data_are_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "saliencies.safetensors"
    file.write_bytes(b"nothing")
    result = prune(sequential=tmp_path, method="taylor", loss_fn=lambda out, _: out.square().mean())
    held = hp.Statistics.load(file)
    hp.prune(NET, X[:1], [X[:40]], budget=hp.Budget(params=0.6), sequential=tmp_path)
    assert hp.Statistics.load(file).origin != held.origin
    assert result.plan.num_removed > 0


@pytest.mark.parametrize("kind", ["second batch", "loss", "forward"])
def test_what_differs_behind_the_first_look_is_measured_anew(tmp_path: Path, caplog, kind: str) -> None:
    def mse(column: int) -> Any:
        return lambda out, y: (out[:, column] - y[:, column]).square().mean()

    targets = NET(X).detach()
    data = [*zip(BATCHES, targets.split(20), strict=True)]
    options: dict[str, Any] = {"budget": hp.Budget(params=0.6), "method": "taylor"}
    first = hp.prune(NET, X[:1], data, sequential=tmp_path, loss_fn=mse(0), **options)
    net, loss_fn = NET, mse(0)
    if kind == "second batch":
        data = [data[0], (5 * data[1][0] + 3, data[1][1]), data[2]]
    elif kind == "loss":
        loss_fn = mse(3)
    else:
        net = tower()
        for block in (*net,)[1:-1]:
            block.inner[1] = nn.GELU()
    caplog.clear()
    again = hp.prune(net, X[:1], data, sequential=tmp_path, loss_fn=loss_fn, **options)
    assert "they are measured anew" in caplog.text
    fresh = hp.prune(net, X[:1], data, sequential=True, loss_fn=loss_fn, **options)
    assert again.plan.removed == fresh.plan.removed
    for mine, theirs in zip(again.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert first.plan.num_removed > 0


@pytest.mark.parametrize("metadata", ["[1]", "null", '"text"', "{}", '{"key": []}', "{"])
def test_files_of_other_programs_are_made_anew(tmp_path: Path, caplog, metadata: str) -> None:
    foreign = {"hessprune_block": metadata, "hessprune_statistics": metadata}
    for name in ("block-000", "saliencies"):
        save_file({"x": torch.zeros(2)}, tmp_path / f"{name}.safetensors", metadata=foreign)
    result = prune(sequential=tmp_path, method="magnitude")
    assert result.plan.num_removed > 0
    assert "block-000.safetensors is damaged, or of another program: it is made anew" in caplog.text
    assert "no file of saliencies" in caplog.text


def test_statistics_choose_and_blocks_are_refitted_on_data() -> None:
    stats = hp.measure(NET, X[:1], BATCHES)
    kept, fresh = prune(stats=stats, sequential=True), prune(sequential=True)
    assert kept.plan.removed == fresh.plan.removed
    for mine, theirs in zip(kept.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


def test_steps_refit_block_by_block_in_between() -> None:
    result = prune(sequential=True, ranking=hp.Ranking(step=0.2), method="magnitude")
    assert result.cost_after.params <= 0.6 * result.cost_before.params


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"compensate": False}, "must come with a refit"),
        ({"implant": 0.2}, "must come without implants"),
        ({"sequential": 3}, "must be True, False or a folder"),
        ({"sequential": ""}, "must be True, False or a folder, got ''"),
    ],
)
def test_wrong_use_is_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        prune(**{"sequential": True} | options)


def test_a_model_without_blocks_is_refused_before_the_work() -> None:
    flat = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(UnsupportedModelError, match="Leave `sequential` out"):
        hp.prune(flat, X[:1].float(), [X.float()], budget=hp.Budget(params=0.6), sequential=True)


def plain_and_sequential(example: Any, batches: Any) -> list[str]:
    """Return what both ways say of wrong input."""
    messages = []
    for by_block in (False, True):
        with pytest.raises(HessPruneError) as caught:
            hp.prune(NET, example, batches, budget=hp.Budget(params=0.6), method="taylor", sequential=by_block)
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize(
    "batches",
    [[X[:, :5]], [X.float()], [{"y": X}], [(X, X, X)], [X[:0]], [3], [], [X, X[:, :4]]],
    ids=["width", "dtype", "keyword", "three", "empty", "number", "none", "second"],
)
def test_wrong_data_is_said_as_without_blocks(batches: Any) -> None:
    plain, blocks = plain_and_sequential(X[:1], batches)
    assert "\n" not in blocks
    assert plain.split(":")[0] == blocks.split(":")[0]


def test_wrong_examples_are_said_as_without_blocks() -> None:
    plain, blocks = plain_and_sequential(X[:1, :3], [X[:, :3]])
    assert plain == blocks
