"""Half of the MACs go without labels and without a loss, whatever a network returns; its own metric hardly moves.

Each network learns a synthetic task in seconds. What counts is the share of the way from the untrained network's
metric to the trained one's that is left after pruning; no weight is trained again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, a loss to train it, a metric (higher is better), and data: inputs and targets by seed."""

    network: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], float]
    steps: int = 250


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.deep = block(1, 16), block(16, 32, 2), block(32, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.last, self.out = block(32, 16), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        return self.out(self.last(torch.cat([first, self.up(self.deep(self.down2(first)))], 1)))


class Detector(nn.Module):
    """Three raw outputs at three scales, five numbers in each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = block(1, 16), block(16, 24, 2), block(24, 32, 2), block(32, 32, 2)
        self.heads = nn.ModuleList(nn.Conv2d(width, 5, 1) for width in (24, 32, 32))

    def forward(self, x: Tensor) -> list[Tensor]:
        a = self.a(self.stem(x))
        b = self.b(a)
        return [head(part) for head, part in zip(self.heads, (a, b, self.c(b)), strict=True)]


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.f = block(1, 16), block(16, 24, 2), nn.Linear(24, 16), nn.Linear(16, 2)

    def embed(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).amax((2, 3)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.f((self.embed(x) - self.embed(y)).square())


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv1d(8, 32, 5, padding=2), nn.Conv1d(32, 32, 3, padding=1), nn.Conv1d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.b(F.relu(self.a(x))))).permute(2, 0, 1).log_softmax(2)  # time, samples, classes


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squares(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Images of a bright and a dark square on noise, and the label of every pixel."""
    g = generator(seed)
    images, labels = torch.randn(count, 1, 16, 16, generator=g) * 0.5, torch.zeros(count, 16, 16, dtype=torch.int64)
    for n in range(count):
        for label, level in ((1, 2.0), (2, -2.0)):
            y, x = torch.randint(0, 11, (2,), generator=g).tolist()
            images[n, 0, y : y + 5, x : x + 5] += level
            labels[n, y : y + 5, x : x + 5] = label
    return images, labels


def boxes(seed: int, count: int) -> tuple[Tensor, list[Tensor]]:
    """Images of squares; at each scale the share of each class in a cell, and smoothed brightness."""
    images, labels = squares(seed, count)
    planes = torch.cat([F.one_hot(labels, 3).movedim(3, 1).float(), images, images.square()], 1)
    return images, [F.avg_pool2d(planes, size) for size in (2, 4, 8)]


def pairs(seed: int, count: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Two images of textures, alike or not."""
    g = generator(seed)
    kinds = torch.stack([torch.sin(torch.arange(12) * f)[:, None] * torch.cos(torch.arange(12) * h)[None]
                         for f, h in ((0.5, 2.0), (2.0, 0.5), (1.2, 1.2), (2.5, 2.5))])  # fmt: skip
    left = torch.randint(0, 4, (count,), generator=g)
    right = torch.where(torch.rand(count, generator=g) < 0.5, left, torch.randint(0, 4, (count,), generator=g))
    x, y = (kinds[k][:, None] + 0.4 * torch.randn(count, 1, 12, 12, generator=g) for k in (left, right))
    return (x, y), (left == right).long()


def numbers(seed: int, count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=generator(seed))
    return x, torch.stack([(x[:, 0] * x[:, 1]).tanh() + x[:, 2], (x[:, 3] - x[:, 4]).abs(), x[:, 5].sin()], 1)


SOUNDS = torch.randn(5, 8, generator=generator(99)) * 1.5


def speech(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Sounds of three letters, each three steps long, and silence between."""
    g = generator(seed)
    letters = torch.randint(1, 5, (count, 3), generator=g)
    track = torch.zeros(count, 12, dtype=torch.int64)
    for place in range(3):
        track[:, 4 * place : 4 * place + 3] = letters[:, place : place + 1]
    return SOUNDS[track].movedim(1, 2) + 0.5 * torch.randn(count, 8, 12, generator=g), letters


def ctc(output: Tensor, letters: Tensor) -> Tensor:
    time, count = output.shape[:2]
    return F.ctc_loss(output, letters, torch.full((count,), time), torch.full((count,), letters.shape[1]))


def letters_read(output: Tensor, letters: Tensor) -> float:
    """Return the share of letters that the greedy reading has at their place."""
    right = 0
    for row, truth in zip(output.argmax(2).T, letters, strict=True):
        read = [int(k) for k in torch.unique_consecutive(row) if k]
        right += sum(a == b for a, b in zip(read, truth.tolist(), strict=False))
    return right / letters.numel()


def explained(outputs: list[Tensor], targets: list[Tensor]) -> float:
    """Return the mean share of the variance that outputs explain, at least 0."""
    ratios = [1 - (o - t).square().mean() / t.var() for o, t in zip(outputs, targets, strict=True)]
    return float(torch.stack(ratios).mean().clamp(min=0))


def overlap(output: Tensor, labels: Tensor) -> float:
    """Return the mean intersection over union of the classes."""
    found = output.argmax(1)
    both = [((found == k) & (labels == k)).sum() / ((found == k) | (labels == k)).sum().clamp(min=1) for k in range(3)]
    return float(torch.stack(both).mean())


TASKS = {
    "segmentation": Task(network=UNet, data=squares, loss=F.cross_entropy, metric=overlap, steps=60),
    "detection": Task(
        network=Detector,
        data=boxes,
        loss=lambda outputs, targets: sum(F.mse_loss(o, t) for o, t in zip(outputs, targets, strict=True)),
        metric=explained,
        steps=100,
    ),
    "regression": Task(
        network=lambda: nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)),
        data=numbers,
        loss=F.mse_loss,
        metric=lambda output, target: explained([output], [target]),
        steps=600,
    ),
    "siamese": Task(
        network=Siamese,
        data=pairs,
        loss=F.cross_entropy,
        metric=lambda output, same: float((output.argmax(1) == same).double().mean()),
        steps=250,
    ),
    "speech": Task(network=Reader, data=speech, loss=ctc, metric=letters_read, steps=300),
}


def trained(task: Task) -> tuple[nn.Module, nn.Module]:
    """Return the untrained and the trained network."""
    torch.manual_seed(0)
    model = task.network()
    start = task.network()
    start.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=task.steps)
    model.train()
    for step in range(task.steps):
        inputs, targets = task.data(step, 32)
        loss = task.loss(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return start.eval(), model.eval()


@torch.no_grad()
def measured(task: Task, model: nn.Module) -> float:
    inputs, targets = task.data(10_000, 256)
    return task.metric(model(*inputs) if isinstance(inputs, tuple) else model(inputs), targets)


@pytest.mark.parametrize("name", TASKS)
def test_half_the_macs_go_without_labels_or_loss(name: str) -> None:
    task = TASKS[name]
    start, model = trained(task)
    inputs = [task.data(20_000 + number, 64)[0] for number in range(4)]
    example = tuple(part[:1] for part in inputs[0]) if isinstance(inputs[0], tuple) else inputs[0][:1]
    result = hp.prune(model, example, inputs, budget=hp.Budget(macs=0.5))
    assert result.plan.kept_fraction("macs") <= 0.5
    assert result.plan.provenance["loss"] == "dense outputs"
    low, high, after = (measured(task, each) for each in (start, model, result.model.eval()))
    kept = (after - low) / (high - low)
    print(f"{name}: untrained {low:.3f}, trained {high:.3f}, half {after:.3f}: {kept:.1%} kept")
    assert high - low > 0.25, "the task is learned"
    assert kept >= 0.9


class Siamese(nn.Module):
    """An embedding, and one number for each sample beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.head(self.body(x).relu())
        return embedding, F.cosine_similarity(embedding, embedding.roll(1, 1), dim=1)


@pytest.mark.parametrize("method", ["joint", "hap", "sosp-i"])
def test_an_output_of_one_number_for_each_sample_stands_beside_another(method: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    result = hp.prune(Siamese(), x[:1], [x], budget=hp.Budget(macs=0.5), method=method)
    assert result.model.body.out_features == 8
