"""What every rival is given: a decoder's sub-layers, the sums over its calibration tokens, and a budget of parameters.

A *sub-layer* is the heads of one attention (a head of keys and values with its queries) or the neurons of one
feed-forward layer. Its units are inputs of one linear layer, the *reader*. A rival returns which units stay and, if it
changes them, weights and biases of the readers; the surgery is that of hessprune for all of them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.foundation.modules import logits_of
from hessprune.planning.planner import plan_removing
from support.sublayers import Sublayer

Kept = dict[str, Tensor]
"""Which units stay, `(U,)` bool for each sub-layer."""
CHUNK = 2
"""Sequences that run at once."""


@dataclass(kw_only=True)
class Sums:
    """Sums over the rows `x` that a reader sees, in double precision."""

    xx: Tensor  # (K, K)
    x: Tensor  # (K,)
    bounds: Tensor  # (N, K): mean absolute input of each sequence
    rows: int = 0

    @classmethod
    def empty(cls, size: int) -> "Sums":
        """Return sums over no rows."""
        zeros = torch.zeros(size, size, dtype=torch.float64)
        return cls(xx=zeros, x=zeros[0].clone(), bounds=torch.zeros(0, size, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Add the inputs of some sequences, `(N, T, K)`."""
        self.bounds = torch.cat([self.bounds, x.abs().mean(1).double()])
        x = x.flatten(0, -2)
        self.xx += x.T @ x
        self.x += x.sum(0, dtype=torch.float64)
        self.rows += len(x)

    @property
    def mean(self) -> Tensor:
        """Mean input, `(K,)`."""
        return self.x / self.rows

    @property
    def variance(self) -> Tensor:
        """Variance of each input about its mean, `(K,)`."""
        return (self.xx.diagonal() / self.rows - self.mean.square()).clamp(min=0)


@dataclass(kw_only=True)
class Tokens:
    """Calibration sequences of a dense model, and what is measured on them once for all budgets."""

    model: nn.Module
    ids: Tensor  # (N, T)
    readers: Sequence[str]

    @cached_property
    def sums(self) -> dict[str, Sums]:
        """The sums of each reader's inputs in the dense model."""
        found = {name: Sums.empty(_linear(self.model, name).in_features) for name in self.readers}
        with torch.no_grad(), ExitStack() as stack:
            for name, sums in found.items():
                stack.enter_context(listening(_linear(self.model, name), sums.add))
            for ids in self.ids.split(CHUNK):
                body(self.model)(input_ids=ids, use_cache=False)
        return found

    @cached_property
    def gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean over sequences of the gradient of each block's weights, and of its square, by parameter."""
        first = self.readers[0].split(".layers.")[0]
        weights = {
            name: weight.requires_grad_()
            for name, weight in self.model.named_parameters()
            if name.startswith(f"{first}.layers.") and weight.dim() == 2
        }
        found = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in weights.items()}
        try:
            for ids in self.ids.split(1):
                with torch.enable_grad():
                    logits = logits_of(self.model(input_ids=ids, use_cache=False))[0, :-1]
                    loss = F.cross_entropy(logits, ids[0, 1:])
                    for name, gradient in zip(found, torch.autograd.grad(loss, list(weights.values())), strict=True):
                        found[name][0].add_(gradient, alpha=1 / len(self.ids))
                        found[name][1].addcmul_(gradient, gradient, value=1 / len(self.ids))
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
        return found


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A decoder, its calibration tokens and a budget."""

    model: nn.Module
    groups: Any
    example: Any
    sublayers: Sequence[Sublayer]
    """In forward order."""
    tokens: Tokens
    share: float = 0.0
    """Share of the parameters of the sub-layers that has to go."""
    seed: int = 0

    @property
    def total(self) -> float:
        """The parameters of all sub-layers."""
        return sum(s.units * s.cost for s in self.sublayers)

    @property
    def excess(self) -> float:
        """The parameters that have to go."""
        return self.share * self.total

    @property
    def budget(self) -> hp.Budget:
        """The same as a budget of the whole model."""
        whole = hp.cost(self.model, self.example).params
        return hp.Budget(params=int(whole - self.excess))

    def losing(self, share: float) -> "Setting":
        """Return the same with another budget."""
        return replace(self, share=share)

    def weight(self, sublayer: Sublayer) -> Tensor:
        """Return the weight of a reader, `(O, K)`."""
        return _linear(self.model, sublayer.reader).weight.detach()

    def by_unit(self, sublayer: Sublayer, columns: Tensor) -> Tensor:
        """Return the sum over a unit's inputs of values of the reader's inputs, `(K,)` → `(U,)`."""
        return columns.view(sublayer.units, -1).sum(1)


def setting(model: nn.Module, groups: Any, ids: Tensor, **options: Any) -> Setting:
    """Return the setting of a dense decoder with heads and neurons, and calibration sequences `(N, T)`."""
    example = {"input_ids": ids[:1]}
    saved = CostModel(model, example, groups).saved_next("params")
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    readers = {g.name: g.slices_with_role("consumer")[0].param.removesuffix(".weight") for g in groups}
    sublayers = [
        Sublayer(group=g, reader=readers[g.name], cost=saved[g.name])
        for g in sorted(groups, key=lambda g: order[readers[g.name]])
    ]
    tokens = Tokens(model=model, ids=ids, readers=[s.reader for s in sublayers])
    return Setting(model=model, groups=groups, example=example, sublayers=sublayers, tokens=tokens, **options)


def uniform(given: Setting, sublayers: Sequence[Sublayer] | None = None) -> dict[str, int]:
    """Return how many units leave each sub-layer: whole heads below the share, the rest in neurons of all layers alike.

    Args:
        given: Budget and model.
        sublayers: Those that may lose units; all of them if None.
    """
    chosen = given.sublayers if sublayers is None else sublayers
    share = given.excess / sum(s.units * s.cost for s in chosen)
    gone = {s.name: min(int(share * s.units + 1e-9), s.units - 1) for s in chosen if s.is_attention}
    left = given.excess - sum(gone[s.name] * s.cost for s in chosen if s.is_attention)
    neurons = [s for s in chosen if not s.is_attention]
    for place, s in enumerate(neurons):
        alike = left / sum(other.cost for other in neurons[place:])
        gone[s.name] = min(round(alike) if place + 1 < len(neurons) else -int(-alike // 1), s.units - 1)
        left -= gone[s.name] * s.cost
    return gone


def least(given: Setting, scores: Mapping[str, Tensor], gone: Mapping[str, int]) -> Kept:
    """Drop so many units of least score from each sub-layer."""
    kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in given.sublayers}
    for name, number in gone.items():
        kept[name][scores[name].argsort(stable=True)[:number]] = False
    return kept


def cheapest(given: Setting, scores: Mapping[str, Tensor]) -> Kept:
    """Drop the units of least score over all sub-layers until enough is gone; each sub-layer keeps one."""
    kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in given.sublayers}
    ranked = sorted(
        (float(value), number, unit)
        for number, s in enumerate(given.sublayers)
        for unit, value in enumerate(scores[s.name])
    )
    left = given.excess
    for _, number, unit in ranked:
        s = given.sublayers[number]
        if left <= 1e-6:
            break
        if int(kept[s.name].sum()) > 1:
            kept[s.name][unit] = False
            left -= s.cost
    return kept


def cut(
    given: Setting,
    kept: Kept,
    weights: Mapping[str, Tensor] | None = None,
    biases: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Return the pruned model, with other weights of some readers, and constants added to their outputs."""
    model = copy.deepcopy(given.model)
    for name, weight in (weights or {}).items():
        _linear(model, name).weight.data.copy_(weight)
    gone = {name: (~mask).nonzero().flatten().tolist() for name, mask in kept.items()}
    plan = plan_removing(model, given.groups, gone, given.budget, example_inputs=given.example, provenance={})
    pruned = hp.apply_plan(model, plan, example_inputs=given.example)
    for name, bias in (biases or {}).items():
        reader = _linear(pruned, name)
        old = 0.0 if reader.bias is None else reader.bias.data
        reader.bias = nn.Parameter((old + bias).to(reader.weight), requires_grad=False)
    return pruned


def body(model: nn.Module) -> nn.Module:
    """Return a decoder without the layer that makes words of its states."""
    found = getattr(model, getattr(model, "base_model_prefix", ""), model)
    assert isinstance(found, nn.Module)
    return found


@contextmanager
def listening(layer: nn.Module, hear: Callable[[Tensor], None], *, stop: bool = False) -> Iterator[None]:
    """Give the inputs of a layer to a function; `stop` ends the pass there."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        hear(args[0].detach())
        if stop:
            raise EnoughError

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class EnoughError(Exception):
    """Ends a forward pass whose rest is not needed."""


def _linear(model: nn.Module, name: str) -> nn.Linear:
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found
