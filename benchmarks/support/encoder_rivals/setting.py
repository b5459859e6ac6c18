"""What every rival is given: an encoder's sub-layers, sentences or images with labels, and a budget.

A *sub-layer* is the heads of one attention or the neurons of one feed-forward pair. Its units are inputs of one linear
layer, the *reader*: a gate on a unit multiplies that unit's inputs of the reader. A rival returns which units stay and,
if it refits, other weights of the readers; the surgery is that of hessprune for all of them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import hessprune as hp
from hessprune.costs.model import CostModel
from hessprune.planning.planner import plan_removing
from support import sublayers

Found = TypeVar("Found")
Kept = dict[str, Tensor]
"""Which units stay, `(U,)` bool for each sub-layer."""
CHUNK = 4096
"""Rows that are multiplied at once in double precision."""


@dataclass(frozen=True, kw_only=True)
class Sublayer(sublayers.Sublayer):
    """One group of units with its reader, and where the residual stream is added."""

    total: str
    """The module whose input is the reader's output with the residual stream added."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An encoder, its calibration samples and a budget."""

    model: nn.Module
    sublayers: Sequence[Sublayer]
    """In forward order."""
    batches: Sequence[tuple[dict[str, Tensor], Tensor]]
    """Inputs by keyword, and labels."""
    excess: float
    """What has to go, in the budgeted quantity."""
    budget: Any = None
    groups: Any = None
    example: Any = None
    reads_first: bool = True
    """Whether the last layer counts at the first position alone."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What budgets have in common, by the name of the function that measures it."""

    def once(self, measure: Callable[["Setting"], Found]) -> Found:
        """Return what a function measures, at its first call."""
        if measure.__qualname__ not in self.measured:
            self.measured[measure.__qualname__] = measure(self)
        return self.measured[measure.__qualname__]

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the model's outputs."""
        found = self.model(**inputs)
        return found if isinstance(found, Tensor) else found.logits

    @property
    def samples(self) -> int:
        """The number of calibration samples."""
        return sum(len(labels) for _, labels in self.batches)

    def reader(self, sublayer: Sublayer) -> nn.Linear:
        """Return the layer that reads a sub-layer's units."""
        found = self.model.get_submodule(sublayer.reader)
        assert isinstance(found, nn.Linear)
        return found

    def rows(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Return which positions of a batch are no padding, `(N T,)`; None for all of them."""
        mask = inputs.get("attention_mask")
        return None if mask is None else mask.flatten().bool()


def setting(
    model: nn.Module,
    groups: Any,
    batches: Any,
    *,
    share: float,
    quantity: str,
    example: Any,
    totals: Any,
    measured: dict[str, Any] | None = None,
) -> Setting:
    """Return a setting in which a share of the MACs or of the units is kept.

    Args:
        model: The dense encoder.
        groups: The groups that may be pruned.
        batches: `(inputs by keyword, labels)`.
        share: Kept share.
        quantity: `"macs"` or `"units"`.
        example: Inputs for which MACs are counted.
        totals: From the name of a reader to that of the module whose input is the residual sum behind it.
        measured: What other budgets of the same groups and batches have measured.
    """
    costs = CostModel(model, example, groups)
    saved = costs.saved_next(quantity)
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    readers = {g.name: g.slices_with_role("consumer")[0].param.removesuffix(".weight") for g in groups}
    sublayers = [
        Sublayer(group=g, reader=readers[g.name], total=totals(readers[g.name]), cost=saved[g.name])
        for g in sorted(groups, key=lambda g: order[readers[g.name]])
    ]
    dense = costs.spent(quantity)
    budget = hp.Budget(macs=share) if quantity == "macs" else hp.Budget(units=share)
    return Setting(
        model=model,
        sublayers=sublayers,
        batches=list(batches),
        excess=dense - budget.limit(dense),
        budget=budget,
        groups=groups,
        example=example,
        measured={} if measured is None else measured,
    )


def cheapest(setting: Setting, scores: Mapping[str, Tensor], excess: float | None = None) -> Kept:
    """Drop the units of least score over all sub-layers until enough cost is gone; each sub-layer keeps one."""
    ranked = sorted((float(value), s.name, unit, s) for s in setting.sublayers if s.name in scores
                    for unit, value in enumerate(scores[s.name]))  # fmt: skip
    kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in setting.sublayers if s.name in scores}
    left = setting.excess if excess is None else excess
    for _, name, unit, sublayer in ranked:
        if left <= 1e-6:
            break
        if int(kept[name].sum()) > 1:
            kept[name][unit] = False
            left -= sublayer.cost
    return kept


def cut(setting: Setting, kept: Kept, weights: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> nn.Module:
    """Return the pruned model, with other weights and biases of some readers, by their names."""
    model = copy.deepcopy(setting.model)
    for name, (weight, bias) in (weights or {}).items():
        reader = model.get_submodule(name)
        reader.weight.data.copy_(weight)  # type: ignore[operator, union-attr]
        reader.bias.data.copy_(bias)  # type: ignore[operator, union-attr]
    gone = {name: (~mask).nonzero().flatten().tolist() for name, mask in kept.items()}
    plan = plan_removing(model, setting.groups, gone, setting.budget, example_inputs=setting.example, provenance={})
    return hp.apply_plan(model, plan, example_inputs=setting.example)


@contextmanager
def gated(setting: Setting, gates: Mapping[str, Tensor], *, since: int = 0) -> Iterator[None]:
    """Multiply units by gates, `(U,)` or `(N, U)`, in the sub-layers from number `since` on."""

    def hook(sublayer: Sublayer) -> Any:
        def multiply(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            gate = sublayer.spread(gates[sublayer.name].to(inputs[0].dtype))
            return (inputs[0] * (gate[:, None] if gate.dim() == 2 else gate),)

        return multiply

    with ExitStack() as stack:
        for sublayer in setting.sublayers[since:]:
            if sublayer.name in gates:
                stack.callback(setting.reader(sublayer).register_forward_pre_hook(hook(sublayer)).remove)
        yield


@contextmanager
def reweighted(setting: Setting, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give readers other weights for a while."""
    readers = {name: setting.model.get_submodule(name) for name in weights}
    old = {name: (reader.weight.data, reader.bias.data) for name, reader in readers.items()}  # type: ignore[union-attr]
    try:
        for name, (weight, bias) in weights.items():
            like = old[name][0]
            readers[name].weight.data, readers[name].bias.data = weight.to(like), bias.to(like)  # type: ignore[union-attr]
        yield
    finally:
        for name, (weight, bias) in old.items():
            readers[name].weight.data, readers[name].bias.data = weight, bias  # type: ignore[union-attr]


Objective = Callable[[Tensor, int, Tensor], list[Tensor]]
"""From logits, number of the batch and labels to scalars, whose gradients are taken one after another."""


def gate_gradients(
    setting: Setting,
    kept: Kept,
    objective: Objective,
    *,
    since: int = 0,
    logits: Callable[[int], Tensor] | None = None,
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield for each batch the gradients of some scalars in one gate for each sample and unit, `{name: (N, U)}`.

    Gates are at 1 where units are kept, at 0 elsewhere; those before sub-layer `since` need no gradient. `logits` are
    those of a numbered batch, if not a whole pass gives them.
    """
    for number, (inputs, labels) in enumerate(setting.batches):
        size = len(labels)
        gates = {name: mask.float().expand(size, -1).clone() for name, mask in kept.items()}
        asked = [s.name for s in setting.sublayers[since:] if s.name in kept]
        for name in asked:
            gates[name].requires_grad_()
        with gated(setting, gates), torch.enable_grad():
            scalars = objective(setting.logits(inputs) if logits is None else logits(number), number, labels)
            found = []
            for scalar in scalars:
                grads = torch.autograd.grad(scalar, [gates[name] for name in asked], retain_graph=True)
                found.append(dict(zip(asked, grads, strict=True)))
        yield found
