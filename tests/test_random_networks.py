"""Random networks: pruned equals masked and costs what was predicted, or the refusal names its cause."""

import gc
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks.check import check
from tests.networks.network import Network

NETWORKS, DRAWS = 24, 5
"""Networks, and draws of units that leave each; `benchmarks/random_networks.py` draws thousands."""


class Contracted(nn.Module):
    """Few channels that an einsum sums over: with one left, torch multiplies element by element, and counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("nic,njc->nij", self.query(x), self.key(x)).relu())


class Mixed(nn.Module):
    """The same with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix, self.head = nn.Linear(3, 4), nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("oc,ntc->nto", self.mix, self.body(x)).relu())


class FourHeads(nn.Module):
    """Four heads of four: without one of them the view still runs, with other heads; dead units hid the difference."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.proj, self.head = nn.Linear(3, 48), nn.Linear(16, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(F.relu(self.proj(y) - 100.0)) + self.head(F.relu(self.proj(y)))


class NumbersBesideHeads(FourHeads):
    """A tensor of numbers made in the forward, and attention: its kernel on CPUs was not counted."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.arange(1.0, 4.0, dtype=torch.float64, device="cpu"))


FAILED = (Contracted, Mixed, FourHeads, NumbersBesideHeads)


def outcomes(rng: random.Random, draws: int) -> list[str]:
    model = Network(rng, blocks=2)
    found = check(model, model.inputs(), rng, draws)
    for outcome in found:
        assert outcome.result in {"pruned", "refused"}, f"{model.drawn}: {outcome.detail}"
    return [outcome.result for outcome in found]


@pytest.fixture(scope="module", autouse=True)
def few_collections():
    """Captured graphs are many small objects; looking through them again and again takes a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    yield
    gc.set_threshold(*before)


def test_random_networks_are_pruned_rightly_or_refused_by_name() -> None:
    results = []

    @settings(
        max_examples=NETWORKS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=[*HealthCheck],
    )
    @given(st.randoms(use_true_random=False))
    def draw(rng: random.Random) -> None:
        torch.manual_seed(0)
        results.extend(outcomes(rng, DRAWS))

    draw()
    assert len(results) >= NETWORKS * DRAWS
    assert results.count("pruned") >= 0.85 * len(results)


@pytest.mark.parametrize("network", FAILED)
def test_networks_that_failed_once(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = network().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    rng = random.Random(0)
    assert {outcome.result for outcome in check(model, (x,), rng, 12)} == {"pruned"}
