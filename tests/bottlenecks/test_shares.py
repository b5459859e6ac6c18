"""Draws share no sample, and keep inputs beside their targets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.bottlenecks.shares import Draw
from hessprune.foundation.batches import Rereadable

NET = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def test_draws_share_no_sample_and_lose_none() -> None:
    x = torch.arange(23.0)[:, None]
    batches = Rereadable([(part, part.long().squeeze(1)) for part in x.split(5)])
    drawn = [torch.cat([inputs for inputs, _ in Draw(batches, number, 3, apart=True)]) for number in range(3)]
    assert torch.equal(torch.cat(drawn).sort(0).values, x)
    middle = Draw(batches, 1, 3, apart=True)
    assert all(torch.equal(inputs.squeeze(1).long(), targets) for inputs, targets in middle)


class Numbered(nn.Module):
    """Answers with the number of each sample behind what a network says of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NET

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(x), x[:, :1]], 1)


def test_targets_of_single_samples_stay_beside_them() -> None:
    torch.manual_seed(0)
    numbers = torch.arange(32.0)
    inputs = torch.cat([numbers[:, None], torch.randn(32, 5)], 1)
    batches = [
        (part, [{"label": torch.tensor(int(row[0]) % 3), "number": row[0]} for row in part]) for part in inputs.split(8)
    ]
    matches: list[bool] = []

    def loss(outputs: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        given = torch.stack([target["number"] for target in targets])
        matches.append(len(outputs) == len(given) and torch.equal(outputs[:, 3].round(), given))
        pairs = zip(outputs[:, :3], targets, strict=True)
        return torch.stack([F.cross_entropy(z[None], y["label"][None]) for z, y in pairs]).mean()

    found = hp.find_bottlenecks(Numbered(), batches[0][0][:1], batches, loss_fn=loss, draws=3)
    assert found.facts["draws"] == 3
    assert len(found) == 2
    assert all(matches)


def test_whole_batches_are_drawn_at_most_as_often_as_there_are_some() -> None:
    boxes = [(torch.randn(4, 6), [torch.randn(3) for _ in range(5)])]
    found = hp.find_bottlenecks(NET, boxes[0][0][:1], boxes * 2, loss_fn=lambda out, _: out.square().mean(), draws=3)
    assert found.facts["draws"] == 2


class Auxiliary(nn.Module):
    """A classifier with a second output that cross-entropy does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.head = nn.Linear(6, 12), nn.Linear(6, 200), nn.Linear(12, 3)
        self.other = nn.Linear(200, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.body(x).relu()), self.other(self.side(x).relu())


def test_levels_that_unseen_groups_put_out_of_reach_are_left_out() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(48, 6), torch.arange(48) % 3

    def loss(output: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output[0], targets)

    found = hp.find_bottlenecks(Auxiliary(), x[:1], [(x, y)], levels=(0.01, 0.5), method="hap", loss_fn=loss, draws=2)
    assert list(found[0].removed) == [0.01]
    assert found.facts["out_of_reach"] == [0.5]
