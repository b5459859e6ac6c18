"""The cache of a decoder: its bytes for each token, predicted for every removal, and as a budget."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.cache import cache_bytes, token_bytes
from hessprune.costs.model import CostModel
from hessprune.errors import BudgetError
from hessprune.planning.planner import plan_removing
from hessprune.structure.remaining import remaining_groups


class Attention(nn.Module):
    """Four heads of queries that share two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        q, k, v = (part.unflatten(-1, (-1, 6)).transpose(1, 2) for part in (self.q(x), self.k(x), self.v(x)))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).flatten(2)), SimpleNamespace(keys=k, values=v)


class Decoder(nn.Module):
    """Two layers of attention, and neurons."""

    def __init__(self, *, use_cache: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=use_cache)
        self.first, self.second = Attention(), Attention()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x, first = self.first(x)
        y, second = self.second(self.down(self.up(x).relu()))
        cache = {"past_key_values": SimpleNamespace(layers=[first, second])} if self.config.use_cache else {}
        return {"logits": y, **cache}


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
TOKEN = 2 * 2 * 2 * 6 * 4
"""Bytes of keys and values, of two layers, of two heads of six 32-bit numbers."""


def decoder(*, use_cache: bool = True) -> Decoder:
    torch.manual_seed(0)
    return Decoder(use_cache=use_cache).eval()


def test_a_token_takes_the_same_bytes_whatever_the_example() -> None:
    for inputs in (X, X[:1, :2]):
        assert hp.cost(decoder(), inputs).kv_cache == TOKEN
    assert token_bytes(decoder(), X).tolist() == [TOKEN / 4] * 4
    assert "192 B of cache per token" in str(hp.cost(decoder(), X))
    assert hp.cost(decoder().double(), X.double()).kv_cache == 2 * TOKEN


def test_a_cache_that_is_switched_off_counts_and_stays_off() -> None:
    model = decoder(use_cache=False)
    assert hp.cost(model, X).kv_cache == TOKEN
    assert model.config.use_cache is False


def test_models_without_a_cache_have_none() -> None:
    assert hp.cost(nn.Linear(8, 2), X).kv_cache == 0


def test_an_encoder_that_refuses_a_cache_has_none() -> None:
    class Encoder(nn.Linear):
        config: SimpleNamespace

        def forward(self, input: Tensor) -> Tensor:
            if self.config.use_cache:
                raise ValueError("`use_cache` can only be set to `True` if this is used as a decoder")
            return super().forward(input)

    model = Encoder(3, 2)
    model.config = SimpleNamespace(use_cache=False)
    assert cache_bytes(model, torch.zeros(1, 3), [])[0] == 0
    assert hp.cost(model, torch.zeros(1, 3)).kv_cache == 0


def test_each_group_takes_its_part_of_the_cache() -> None:
    model = decoder()
    groups = hp.find_groups(model, X)
    total, per_unit = cache_bytes(model, X, groups)
    assert total == TOKEN
    parts = zip([group.name for group in groups], per_unit.tolist(), strict=True)
    assert {name: part for name, part in parts if part} == {"first.q": TOKEN / 4, "second.q": TOKEN / 4}


@pytest.mark.parametrize("bound", [0.5, "50%", TOKEN // 2])
def test_a_budget_of_the_cache_takes_heads_alone(bound: float | str) -> None:
    model = decoder()
    budget = hp.Budget(kv_cache=bound)
    for method in ("magnitude", "joint"):
        result = hp.prune(model, X, [X], budget=budget, method=method)
        assert result.cost_after.kv_cache == TOKEN // 2 == hp.cost(result.model, X).kv_cache
        assert not result.plan.removed["up"]
        assert result.plan.kept_fraction("kv_cache") == 0.5
    assert hp.Plan.from_json(result.plan.to_json()) == result.plan


def test_neurons_stay_where_cost_does_not_matter() -> None:
    ranking = hp.Ranking(per_cost=False)
    result = hp.prune(decoder(), X, [X], budget=hp.Budget(kv_cache=0.5), method="random", ranking=ranking)
    assert not result.plan.removed["up"]


def test_a_budget_of_a_cache_that_is_not_there() -> None:
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = hp.find_groups(net, X)
    with pytest.raises(BudgetError, match=r"must bound the cache of a decoder with removable heads"):
        hp.make_plan(net, groups, {"0": torch.ones(4)}, hp.Budget(kv_cache=0.5), example_inputs=X)


def test_the_last_head_of_a_layer_stays_in_every_count() -> None:
    model, facts = decoder(), {"budget": hp.Budget(params=0.9), "example_inputs": X, "provenance": {}}
    groups = hp.find_groups(model, X)
    heads = [group.name for group in groups if group.kind == "heads"]
    for names in (heads[:1], heads):
        gone = dict.fromkeys(names, (0,))
        smaller = hp.apply_plan(model, plan_removing(model, groups, gone, **facts))
        remaining = remaining_groups(groups, gone)
        costs = CostModel(smaller, X, remaining)
        assert costs.dense == hp.cost(smaller, X)
        more = {group.name: (0,) for group in remaining if group.num_units > 1}
        least = hp.apply_plan(smaller, plan_removing(smaller, remaining, more, **facts))
        assert costs(dict.fromkeys(more, 1)) == hp.cost(least, X)
