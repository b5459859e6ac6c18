"""Decoders run without their cache, and get it back."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.foundation.caches import cached_tensors, copied_cache, without_cache
from hessprune.foundation.modules import call_model


class Kept:
    """A cache: an object that no exporter knows."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Decoder(nn.Module):
    """Returns a cache of its inner activations, if its configuration or the caller says so."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True, text=SimpleNamespace(use_cache=True))
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, use_cache: bool | None = None) -> tuple[Tensor, Kept | None]:
        hidden = self.up(x).relu()
        keeps = self.config.use_cache and self.config.text.use_cache if use_cache is None else use_cache
        return self.down(hidden), Kept(hidden) if keeps else None


def test_decoders_are_pruned_without_their_cache_and_keep_it() -> None:
    model, x = Decoder(), torch.randn(2, 4)
    result = hp.prune(model, x, [x], budget=hp.Budget(params=0.5), method="magnitude")
    config: Any = result.model.config
    assert config.use_cache
    assert model.config.text.use_cache
    cache = result.model(x)[1]
    assert cache is not None
    assert cache.keys.shape[1] == result.model.get_parameter("up.weight").shape[0] < 8


def test_an_argument_that_asks_for_a_cache_is_answered_without() -> None:
    model, x = Decoder(), torch.randn(2, 4)
    assert len(hp.find_groups(model, {"x": x, "use_cache": True})) == 1
    assert call_model(model, {"x": x, "use_cache": True})[1] is None


def test_flags_are_restored_after_an_error() -> None:
    model = Decoder()
    model.config.text.use_cache = False
    try:
        with without_cache(model):
            assert not model.config.use_cache
            raise ValueError
    except ValueError:
        assert model.config.use_cache
        assert not model.config.text.use_cache


def test_keys_and_values_of_a_cache_under_either_name() -> None:
    keys, values = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5)
    own = SimpleNamespace(layers=[SimpleNamespace(keys=keys, values=values), SimpleNamespace(keys=None)])
    pair = SimpleNamespace(self_attention_cache=own, cross_attention_cache=own)
    for name in ("cache", "past_key_values"):
        assert [tensor.shape[-1] for tensor in cached_tensors({name: own})] == [4, 5]
        assert len(cached_tensors({name: pair})) == 4
    assert not cached_tensors({"logits": keys})
    assert not cached_tensors(keys)


def test_a_cache_is_copied_and_nothing_else() -> None:
    cache, keys = SimpleNamespace(layers=[torch.zeros(1, 2)]), torch.zeros(1, 2)
    assert copied_cache(cache).layers[0] is not cache.layers[0]
    assert all(copied_cache(value) is value for value in (keys, torch.nn.Module(), 3, None))


@dataclass(frozen=True)
class Frozen:
    """A configuration that cannot be changed in the usual way."""

    use_cache: bool = True


def test_frozen_configurations_are_switched_and_restored() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    model.config = Frozen()  # type: ignore[assignment]
    with without_cache(model):
        assert model.config.use_cache is False
    assert model.config.use_cache is True
    assert hp.cost(model, torch.zeros(1, 2)).macs == 16
