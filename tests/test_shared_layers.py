"""Layers that are used several times: planted dead units go first under every method, and the refit sees all uses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp

DEAD = (1, 4, 6)


class Siamese(nn.Module):
    """More inputs than outputs, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.second(F.relu(self.first(part)).mean((2, 3))) for part in x.chunk(2, 3))
        return self.out((left - right).abs())


class Pyramid(nn.Module):
    """One head over two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        levels = (x, F.avg_pool2d(x, 2))
        return sum(self.second(F.relu(self.first(level))).mean((2, 3)) for level in levels)  # type: ignore[return-value]


class Albert(nn.Module):
    """The same feed-forward layers in every block."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.norm = nn.Linear(16, 6), nn.LayerNorm(6)
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x.flatten(1)[:, :64].view(len(x), 4, 16))
        for _ in range(3):
            x = x + self.second(F.gelu(self.first(self.norm(x))))
        return self.out(x.mean(1))


class Tied(nn.Module):
    """An autoencoder that decodes with the transposed weight of its encoder, behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        code = self.second(F.relu(self.first(x.flatten(1)[:, :16])))
        return F.relu(code @ self.second.weight) @ self.first.weight


X = torch.randn(24, 1, 8, 16, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 3
NETWORKS = (Siamese, Pyramid, Albert, Tied)
METHODS = (
    hp.Joint(),
    hp.Joint(refit=False),
    hp.HAP(),
    hp.HAP(estimator="rademacher"),
    hp.Taylor(),
    hp.SOSPH(),
    hp.SOSPI(),
    hp.Magnitude(),
)


def planted(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model: Any = kind().eval()
    with torch.no_grad():
        model.first.bias += 0.5  # no other unit is dead by chance
        model.first.weight[list(DEAD)] = 0
        model.first.bias[list(DEAD)] = 0
        if kind is Tied:  # the decoder computes these units, too
            model.second.weight[:, list(DEAD)] = 0
    return model


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_dead_units_go_first(kind: type[nn.Module], method: hp.Method) -> None:
    model = planted(kind)
    loss_fn = F.mse_loss if kind is Tied else None
    batches = [(X, X.flatten(1)[:, :16] if kind is Tied else LABELS)]
    groups = hp.find_groups(model, X[:2])
    (group,) = (group for group in groups if group.num_units == 8)
    values = hp.saliency(model, groups, batches, method, loss_fn=loss_fn)[group.name]
    assert set(values.argsort(stable=True)[:3].tolist()) == set(DEAD), values


@pytest.mark.parametrize("kind", NETWORKS[:3])  # a weight that is also used transposed stays as it is
def test_the_refit_lowers_the_distance(kind: type[nn.Module]) -> None:
    model = planted(kind)
    batches = [X[:8], X[8:]]
    cut = hp.prune(model, X[:2], batches, budget=hp.Budget(units=0.6), compensate=False)
    refitted = hp.compensate(model, cut.model, cut.plan, batches)
    before, after = (float((each(X) - model(X)).square().mean().detach()) for each in (cut.model, refitted))
    assert after < before or before < 1e-10
