"""Training by several processes: the same steps as by one, whatever the shares, and a run that changes their number."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hessprune as hp
from hessprune.foundation.processes import alone, num_processes
from hessprune.foundation.words import next_word
from tests.spawning import SIZE, grouped, spawned

CONFIG = hp.FinetuneConfig(epochs=3, lr=0.1, reestimate_batchnorm=False)
SIZES = (8, 5, 1)
"""Rows of the batches: even and uneven shares, and one that leaves a process without a row."""


def network(*, norm: bool = False, unused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10), nn.BatchNorm1d(10) if norm else nn.Tanh(), nn.ReLU(), nn.Linear(10, 3)]
    net = nn.Sequential(*layers).double()
    if unused:
        net[1].register_parameter("spare", nn.Parameter(torch.zeros(2).double()))
    return net


class Words(nn.Module):
    """A model of the next word."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(9, 6).double(), nn.Linear(6, 9).double()

    def forward(self, words: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        del attention_mask
        return self.head(torch.tanh(self.words(words)))


def louder(model: nn.Module) -> nn.Module:
    """Return a model with twice the weights, from which others can learn."""
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2
    return model


def batches(kind: str = "labels") -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(14, 6, generator=generator).double(), torch.randint(3, (14,), generator=generator)
    if kind == "unlabelled":
        y[:4] = -100  # the whole share of the first of two processes
    if kind == "regression":
        return [*zip(x.split(SIZES), x[:, :3].split(SIZES), strict=True)]
    if kind == "words":
        words = torch.randint(9, (14, 5), generator=generator)
        return [(part, part.masked_fill(part == 0, -100)) for part in words.split(SIZES)]
    if kind == "padded words":
        words, mask = torch.randint(9, (14, 5), generator=generator), torch.ones(14, 5)
        mask[:4, :3], mask[5, 2:] = 0, 0  # another number of words in each share
        pairs = zip(words.split(SIZES), mask.split(SIZES), strict=True)
        return [{"words": ids, "attention_mask": kept} for ids, kept in pairs]
    if kind == "boxes":
        boxes = [{"xy": torch.randn(1 + row % 4, 3, generator=generator).double()} for row in range(14)]
        return [(x[:8], boxes[:8]), (x[8:13], boxes[8:13]), (x[13:], boxes[13:])]
    if kind == "beside":
        place, scale = torch.randn(1, 6, generator=generator).double(), torch.rand(14, 1, generator=generator).double()
        parts = zip(x.split(SIZES), scale.split(SIZES), y.split(SIZES), strict=True)
        return [((part, place, scales), labels) for part, scales, labels in parts]
    return [*zip(x.split(SIZES), y.split(SIZES), strict=True)]


class Beside(nn.Module):
    """A model that takes one row for all samples, and a scale for each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor, place: Tensor, scale: Tensor) -> Tensor:
        return self.body(x + place) * scale


def of_boxes(outputs: Tensor, boxes: list[Any]) -> Tensor:
    """Return a mean over samples, each with boxes of its own number."""
    losses = [(output - box["xy"].mean(0)).square().sum() for output, box in zip(outputs, boxes, strict=True)]
    return torch.stack(losses).mean()


CASES: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "labels": (network, "labels", {}),
    "a parameter without use": (lambda: network(unused=True), "labels", {}),
    "a share without labels": (network, "unlabelled", {}),
    "weights of classes": (network, "labels", {"loss_fn": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 5.0]).double())}),
    "regression": (network, "regression", {"loss_fn": nn.functional.mse_loss}),
    "boxes": (network, "boxes", {"loss_fn": of_boxes}),
    "a row for all": (Beside, "beside", {}),
    "words": (Words, "words", {"loss_fn": next_word}),
    "padded words of a teacher": (
        Words,
        "padded words",
        {
            "teacher": louder(Words()),
            "config": hp.FinetuneConfig(epochs=3, lr=0.1, distill_weight=0.5),
            "metric": "perplexity",
        },
    ),
    "a teacher": (
        network,
        "unlabelled",
        {"teacher": network(), "config": hp.FinetuneConfig(epochs=3, lr=0.1, distill_weight=0.5)},
    ),
}


def trained(name: str, model: nn.Module, **more: Any) -> nn.Module:
    _, kind, given = CASES[name]
    data = batches(kind)
    return hp.finetune(model, data, data, **{"config": CONFIG} | given | more).model


class Interrupted:
    """Batches that end a run with Ctrl-C in its second epoch."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return len(SIZES)

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, batch in enumerate(batches()):
            if self.passes > 4 and number == 2:
                raise KeyboardInterrupt
            yield batch


def answers(folder: Path, number: int) -> dict[str, Any]:
    """Return the weights that every process has in the end."""

    def wrapped(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model) if num_processes() > 1 else model

    found = {name: weights(trained(name, wrapped(make()))) for name, (make, _, _) in CASES.items()}
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    data = TensorDataset(x, y)
    sampler = DistributedSampler(data, shuffle=False) if num_processes() > 1 else None
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    found["loader"] = weights(hp.finetune(wrapped(network()), loader, loader, config=CONFIG).model)
    normed = hp.finetune(wrapped(network(norm=True)), batches()[:2], batches()[:2], config=CONFIG)
    found["norm"] = weights(normed.model)
    found["losses"] = torch.tensor([record.train_loss or 0.0 for record in normed.history])
    if num_processes() > 1:
        if number == 0:
            with alone(), pytest.raises(KeyboardInterrupt):
                interrupted(folder)
        dist.barrier()
        config = hp.FinetuneConfig(epochs=3, lr=0.1, reestimate_batchnorm=False, checkpoint_every_steps=1)
        found["resumed"] = weights(trained("labels", wrapped(network()), config=config, checkpoint_dir=folder / "run"))
        later = [*batches()[:2], (batches()[2][0] + number, batches()[2][1])]
        for other in ([(batch[0] + number, batch[1]) for batch in batches()], later, batches()[: 2 + number]):
            with pytest.raises(hp.errors.DataError, match="`train` must be the same on all processes"):
                hp.finetune(wrapped(network()), other, batches(), config=CONFIG)
        flat = [((torch.ones(4, 6).double(), torch.ones(7).double(), torch.ones(4, 1).double()), torch.arange(4) % 3)]
        with pytest.raises(hp.errors.DataError, match="must have the 4 samples first"):
            hp.finetune(wrapped(Beside()), flat, batches("beside"), config=CONFIG)
        lists = [(torch.ones(2, 6).double(), [torch.ones(2, 3).double(), torch.ones(2, 3).double()])]
        with pytest.raises(hp.errors.DataError, match="one item for each sample"):
            hp.finetune(wrapped(network()), lists, lists, config=CONFIG, loss_fn=lambda out, t: (out - t[0]).mean())
    return found


def interrupted(folder: Path) -> None:
    config = hp.FinetuneConfig(epochs=3, lr=0.1, reestimate_batchnorm=False, checkpoint_every_steps=1)
    hp.finetune(network(), Interrupted(), batches(), config=config, checkpoint_dir=folder / "run")


def weights(model: nn.Module) -> Tensor:
    assert not isinstance(model, DistributedDataParallel)
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def work(number: int, port: int, folder: str) -> None:
    with grouped(number, port):
        torch.save(answers(Path(folder), number), Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict[str, Any]:
    return answers(tmp_path_factory.mktemp("single"), 0)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("team")
    spawned(work, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(SIZE)]


@pytest.mark.parametrize("name", [*CASES, "loader"])
def test_two_processes_take_the_steps_of_one(together, single, name: str) -> None:
    for found in together:
        torch.testing.assert_close(found[name], single[name], rtol=1e-9, atol=1e-12)


def test_a_run_of_one_process_goes_on_with_two(together, single) -> None:
    for found in together:
        torch.testing.assert_close(found["resumed"], single["labels"], rtol=1e-9, atol=1e-12)


def test_processes_agree_on_running_statistics_and_learn(together) -> None:
    assert torch.equal(together[0]["norm"], together[1]["norm"])
    assert together[0]["losses"][-1] < together[0]["losses"][1]
