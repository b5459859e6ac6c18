"""One measurement serves all budgets: the plans of a fresh call, and no further pass over the data."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.errors import ArgumentError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.identity import architecture_sha256


class Counting(nn.Module):
    """Counts the samples that run through it."""

    samples = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 4, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        Counting.samples += len(x)
        return self.layers(x)


NET = Counting().eval()
X = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))
BATCHES = [(part, torch.arange(len(part)) % 3) for part in X.split(8)]
METHODS = ("joint", "hap", "taylor", "magnitude", "random")


def prune(share: float, **options: Any) -> hp.PruneResult:
    return hp.prune(NET, X[:1], BATCHES, budget=hp.Budget(macs=share), **options)


@pytest.fixture(scope="module")
def stats() -> hp.Statistics:
    return hp.measure(NET, X[:1], BATCHES, method=("joint", "hap", "taylor"))


@pytest.mark.parametrize("method", METHODS)
def test_plans_are_those_of_a_fresh_call(stats, method: str) -> None:
    for share in (0.7, 0.4):
        kept, fresh = prune(share, method=method, stats=stats), prune(share, method=method)
        assert kept.plan.removed == fresh.plan.removed
        assert kept.cost_after == fresh.cost_after


def test_no_further_pass_over_the_data(stats) -> None:
    Counting.samples = 0
    hp.find_groups(NET, X[:1])
    groups = Counting.samples
    Counting.samples = 0
    prune(0.5, stats=stats)
    assert Counting.samples - groups < 24  # examples of one and two samples: to capture, to verify, to watch


def test_survivors_are_refitted(stats) -> None:
    kept, plain = prune(0.5, stats=stats), prune(0.5, stats=stats, compensate=False, method="magnitude")
    plain = hp.apply_plan(NET, kept.plan)
    with torch.no_grad():
        errors = [float((model(X) - NET(X)).square().mean()) for model in (kept.model, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_what_does_not_belong_is_refused(stats) -> None:
    other = Counting()
    nn.init.zeros_(other.layers[0].weight)
    with pytest.raises(ArgumentError, match="measured on the same model"):
        hp.prune(other.eval(), X[:1], BATCHES, budget=hp.Budget(macs=0.5), stats=stats)
    with pytest.raises(ArgumentError, match="measured on the same groups"):
        prune(0.5, stats=stats, ranking=hp.Ranking(ignore=("layers.0",)))
    with pytest.raises(ArgumentError, match="measured on the same data"):
        hp.prune(NET, X[:1], [X], budget=hp.Budget(macs=0.5), stats=stats)
    last = BATCHES[-1]
    for other_last in ((last[0] + 1, last[1]), (last[0], 1 - last[1].clamp(max=1))):  # only the last batch differs
        with pytest.raises(ArgumentError, match="measured on the same data"):
            hp.prune(NET, X[:1], [*BATCHES[:-1], other_last], budget=hp.Budget(macs=0.5), stats=stats)
    with pytest.raises(ArgumentError, match="measured on the same loss"):
        prune(0.5, stats=stats, loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(ArgumentError, match="measured on the same seed, got 0 instead of 1"):
        prune(0.5, stats=stats, seed=1)
    with pytest.raises(
        ArgumentError, match=r"saliencies of the method, got those of joint\(refit=True\), hap, taylor for"
    ):
        prune(0.5, stats=stats, method="sosp-i")
    with pytest.raises(ArgumentError, match="`stats` must be Statistics, got dict"):
        prune(0.5, stats={})


def test_another_forward_of_the_same_weights_is_refused(monkeypatch) -> None:
    stats = hp.measure(NET, X[:1], BATCHES, method="taylor", compensate=False)
    options: dict[str, Any] = {"method": "taylor", "compensate": False, "stats": stats}
    assert prune(0.5, **options).plan.num_removed > 0
    with monkeypatch.context() as patched:
        patched.setitem(NET.layers._modules, "2", nn.GELU())
        with pytest.raises(ArgumentError, match="measured on the same architecture"):
            prune(0.5, **options)
    with monkeypatch.context() as patched:
        patched.setattr(Counting, "forward", lambda self, x: self.layers(2 * x))
        with pytest.raises(ArgumentError, match="measured on the same architecture"):
            prune(0.5, **options)
    with monkeypatch.context() as patched:
        patched.setattr(NET.layers[1], "eps", 1.0)  # what the forward reads, and no class says
        patched.setattr(type(NET.layers[1]), "extra_repr", lambda _: "")
        stale = replace(stats, origin=replace(stats.origin, architecture=architecture_sha256(NET)))
        with pytest.raises(ArgumentError, match="measured on the same outputs of the model"):
            prune(0.5, **options | {"stats": stale})


def test_losses_of_one_name_are_told_apart() -> None:
    def squares(column: int) -> Any:
        return lambda out, _: out[:, column].square().mean()

    def measure(loss_fn: Any) -> hp.Statistics:
        return hp.measure(NET, X[:1], BATCHES, method="taylor", compensate=False, loss_fn=loss_fn)

    stats = measure(squares(0))
    options: dict[str, Any] = {"method": "taylor", "compensate": False}
    kept, fresh = (prune(0.5, loss_fn=squares(0), **options, **more) for more in ({"stats": stats}, {}))
    assert kept.plan.removed == fresh.plan.removed
    with pytest.raises(ArgumentError, match=r"measured on the same loss, got '<lambda> .* instead of '<lambda> "):
        prune(0.5, loss_fn=squares(1), **options, stats=stats)


def test_data_is_hashed_in_a_pass_that_measures_anyway() -> None:
    class Read(list):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return super().__iter__()

    data = Read(BATCHES)
    plain = Rereadable.of(data, NET)
    hp.saliency(NET, hp.find_groups(NET, X[:1]), plain, "taylor")
    alone, data.passes = data.passes, 0
    hp.measure(NET, X[:1], data, method="taylor", compensate=False)
    assert data.passes <= alone + 2  # the first batch, for checks and for answers


def test_statistics_without_moments_serve_no_compensation() -> None:
    bare = hp.measure(NET, X[:1], BATCHES, method="taylor", compensate=False)
    assert bare.moments is None
    assert prune(0.5, method="taylor", stats=bare, compensate=False).plan.num_removed > 0
    with pytest.raises(ArgumentError, match="`stats` must hold input moments"):
        prune(0.5, method="taylor", stats=bare)
    with pytest.raises(ArgumentError, match="`method` must name a method at least"):
        hp.measure(NET, X[:1], BATCHES, method=())


def test_moments_are_those_of_the_inputs() -> None:
    for method in ("joint", "magnitude"):
        moments = hp.measure(NET, X[:1], BATCHES, method=method).moments
        assert moments is not None
        held = moments["layers.6.weight"]
        with torch.no_grad():
            rows = NET.layers[:6](X)
        assert held.rows == 24
        torch.testing.assert_close(held.mean[0], rows.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(held.covariance[0], torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-5)


def test_a_limit_of_memory_asks_for_no_other_statistics() -> None:
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 4)
    stats = hp.measure(net, x[:1], [x])
    limited = hp.Joint(memory_limit=1 << 28)
    assert hp.prune(net, x[:1], [x], budget=hp.Budget(macs=0.5), method=limited, stats=stats).plan.num_removed
    with pytest.raises(ArgumentError, match="`method` must"):
        hp.measure(net, x[:1], [x], method=None)
