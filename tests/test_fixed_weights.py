"""Weights that no training changes, kept in buffers: blurs follow their channels, projections stay whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import hessprune as hp


class Blurred(nn.Module):
    """Two convolutions with a fixed blur between them, as in networks that resist shifts."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", (line[:, None] * line).expand(12, 1, 3, 3).clone())
        self.second, self.head = nn.Conv2d(12, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = functional.conv2d(x, self.blur, stride=2, padding=1, groups=x.shape[1])
        return self.head(functional.relu(self.second(x)).mean((2, 3)))


class Projected(nn.Module):
    """Two linear layers with a fixed random projection between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(7, 9), nn.Linear(9, 3)
        self.register_buffer("projection", torch.randn(7, 8))

    def forward(self, x):
        x = functional.linear(functional.relu(self.first(x)), self.projection)
        return self.third(functional.relu(self.second(functional.relu(x))))


@pytest.mark.parametrize(
    "method",
    [hp.Magnitude(), hp.Taylor(), hp.HAP(), hp.SOSPH(), hp.SOSPI(), hp.NViT(), hp.Joint()],
    ids=lambda m: m.name,
)
def test_filters_in_a_buffer_follow_their_channels(method):
    torch.manual_seed(0)
    model, x, labels = Blurred().eval(), torch.randn(16, 3, 12, 12), torch.arange(16) % 5
    group = hp.find_groups(model, x)[0]
    assert [piece.role for piece in group.slices if piece.param == "blur"] == ["follower"]
    result = hp.prune(model, x, [(x, labels)], method=method, budget=hp.Budget(macs=0.5))
    kept = result.model.first.out_channels
    assert result.model.blur.shape[0] == result.model.second.in_channels == kept < 12
    assert torch.equal(result.model.blur, model.blur[:kept])  # all filters are alike, and no refit touches them


def test_layers_around_a_fixed_projection_stay_and_say_why():
    torch.manual_seed(0)
    groups = hp.find_groups(Projected(), torch.randn(4, 6))
    reasons = {(entry.param, entry.dim): entry.reason for entry in groups.frozen}
    assert [group.name for group in groups] == ["second"]
    assert reasons["first.weight", 0] == "fixed weights read it, the buffer 'projection'"
    assert reasons["second.weight", 1] == "fixed weights emit it, the buffer 'projection'"


class Upsampled(nn.Module):
    """A fixed transposed convolution in groups, each of several channels, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(10, 7, 1), nn.Linear(7, 5)
        self.register_buffer("filters", torch.randn(8, 5, 2, 2))

    def forward(self, x):
        x = functional.conv_transpose2d(functional.relu(self.first(x)), self.filters, stride=2, groups=2)
        return self.head(functional.relu(self.second(x)).mean((2, 3)))


class LookedUp(nn.Module):
    """A fixed table of words before two linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 9), nn.Linear(9, 5)
        self.register_buffer("table", torch.randn(11, 8))

    def forward(self, words):
        return self.head(functional.relu(self.first(functional.embedding(words, self.table)))).mean(1)


@pytest.mark.parametrize("method", [hp.Taylor(), hp.HAP(), hp.SOSPI(), hp.Joint()], ids=lambda m: m.name)
@pytest.mark.parametrize(
    ("model", "x", "kept"),
    [(Upsampled(), torch.randn(16, 3, 6, 6), "second"), (LookedUp(), torch.randint(11, (16, 4)), "first")],
    ids=["transposed", "table"],
)
def test_only_layers_beside_fixed_weights_lose_units(model, x, kept, method):
    groups = hp.find_groups(model.eval(), x)
    result = hp.prune(model, x, [(x, torch.arange(16) % 5)], method=method, budget=hp.Budget(units=0.6))
    assert [group.name for group in groups] == [kept]
    assert all(
        torch.equal(after, before) for after, before in zip(result.model.buffers(), model.buffers(), strict=True)
    )
