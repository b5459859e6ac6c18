"""The check of one network: pruned equals masked and costs what was predicted, or it is refused by name."""

import copy
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hessprune as hp
from hessprune.costs.model import Cost, CostModel
from hessprune.planning.ranking import Ranking
from hessprune.structure.groups import Group
from hessprune.surgery.slicing import slice_units

TOLERANCE = 1e-8  # float64, relative to the largest output


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """`pruned`, `refused`, `wrong` or `crashed`, and why."""

    result: str
    detail: str = ""


def check(model: nn.Module, inputs: tuple[Tensor, ...], rng: random.Random, draws: int = 1) -> list[Outcome]:
    """Let random units of random groups leave, `draws` times; compare with an independent mask and count.

    The first draw is a plan that the library applies and verifies; further ones are cuts of any units.
    """
    try:
        groups = hp.find_groups(model, inputs, compare=True)
        outcomes = [_planned(model, groups, inputs, rng)]
        costs = CostModel(model, inputs, groups) if draws > 1 else None
        return outcomes + [_cut(model, groups, inputs, rng, costs) for _ in range(draws - 1) if costs]
    except hp.errors.UnsupportedModelError as error:
        result = "refused" if _causes(str(error)) else "crashed"
        return [Outcome(result=result, detail=_causes(str(error)) or str(error))] * draws
    except Exception as error:
        return [Outcome(result="crashed", detail=f"{type(error).__name__}: {error}")]


def _planned(model: nn.Module, groups: Sequence[Group], inputs: tuple[Tensor, ...], rng: random.Random) -> Outcome:
    """Plan the removal of random units, and let the library apply and verify the plan."""
    saliency = {
        group.name: torch.tensor([rng.random() * scale for _ in range(group.num_units)])
        for group in groups
        for scale in (rng.choice((0.1, 1.0, 1.0, 10.0)),)
    }
    total = sum(group.num_units for group in groups)
    budget = hp.Budget(units=rng.randint(len(groups), total - 1) / total)  # a share: one unit would read as all
    ranking = Ranking(min_kept_fraction=0.0)
    plan = hp.make_plan(model, groups, saliency, budget, example_inputs=inputs, ranking=ranking)
    try:
        pruned = hp.apply_plan(model, plan, example_inputs=inputs)
    except hp.errors.VerificationError as error:
        return Outcome(result="wrong", detail=str(error))
    if not plan.num_removed:
        return Outcome(result="wrong", detail="no unit left")
    return _compared(model, pruned, groups, plan.removed, plan.cost_after, inputs)


def _cut(
    model: nn.Module, groups: Sequence[Group], inputs: tuple[Tensor, ...], rng: random.Random, costs: CostModel
) -> Outcome:
    """Cut any units of some groups."""
    counts = {group.name: rng.choice((0, 1, rng.randrange(group.num_units))) for group in groups}
    removed = {group.name: sorted(rng.sample(range(group.num_units), counts[group.name])) for group in groups}
    pruned = copy.deepcopy(model)
    slice_units(pruned, groups, removed)
    return _compared(model, pruned, groups, removed, costs(counts), inputs)


def _compared(
    model: nn.Module,
    pruned: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    predicted: Cost,
    inputs: tuple[Tensor, ...],
) -> Outcome:
    """Compare a pruned model with the masked one, and its cost with the predicted one."""
    fault = _fault(masked(model, groups, removed), pruned, predicted, inputs)
    return Outcome(result="wrong" if fault else "pruned", detail=fault)


def _fault(expected: nn.Module, pruned: nn.Module, predicted: Cost, inputs: tuple[Tensor, ...]) -> str:
    """Return what is wrong with a pruned model, or nothing."""
    with torch.no_grad():
        pairs = list(zip(_tensors(expected(*inputs)), _tensors(pruned(*inputs)), strict=True))
    for a, b in pairs:
        if a.shape != b.shape or not float((a - b).abs().max()) <= TOLERANCE * max(1e-3, float(a.abs().max())):
            return "the output differs from that of the masked model"
    params = sum(parameter.numel() for parameter in pruned.parameters())
    if params != predicted.params:
        return f"{params} parameters, not {predicted.params}"
    macs = counted_macs(pruned, inputs)
    return f"{macs} MACs, not {predicted.macs}" if macs != predicted.macs else ""


def masked(model: nn.Module, groups: Sequence[Group], removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy with zeros in all weights of the removed units: rows, biases, affine norms, and columns that read.

    Buffers stay, since a zero in a stored deviation is no mask.
    """
    copied = copy.deepcopy(model)
    parameters = dict(copied.named_parameters(remove_duplicate=False))
    for group in groups:
        for piece in group.slices:
            if piece.param in parameters:
                rows = [position for unit in removed.get(group.name, ()) for position in piece.index[unit]]
                parameters[piece.param].data[(slice(None),) * piece.dim + (rows,)] = 0.0
    return copied


def counted_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Count multiply-adds with torch's own counter, which does not know the fused kernels of attention on CPUs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    else:
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


def _causes(message: str) -> str:
    """Return the causes of a refusal without names of modules; nothing if it names no operator and no size."""
    causes = message.partition("found none: ")[2].partition(". Prune")[0]
    while (shorter := re.sub(r"in module '[^']*'|\([^()]*\)", "", causes)) != causes:
        causes = shorter
    listed = dict.fromkeys(cause.strip() for cause in causes.split(";"))
    named = [cause for cause in listed if not cause.startswith("it meets the model's input")]
    return "; ".join([cause for cause in named if cause != "the model returns it"] or named)
