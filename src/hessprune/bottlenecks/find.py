"""`hp.find_bottlenecks`: the groups that a pruning spares, which are too narrow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hessprune.bottlenecks.growth import growth
from hessprune.bottlenecks.shares import removed_shares
from hessprune.bottlenecks.values import Bottleneck, Bottlenecks
from hessprune.costs.budget import Budget
from hessprune.costs.model import CostModel
from hessprune.errors import ArgumentError
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_choice, check_range
from hessprune.foundation.formatting import shown
from hessprune.methods.method import Method
from hessprune.methods.sosp_h import SOSPH
from hessprune.methods.sosp_i import SOSPI
from hessprune.methods.text import as_method
from hessprune.planning.ranking import Ranking, check_at_once, removable
from hessprune.pruning.task import Task
from hessprune.structure.groups import Group

QUANTITIES = ("macs", "params", "units")


@torch.inference_mode(False)
def find_bottlenecks(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    *,
    levels: Sequence[float] = (0.3, 0.5, 0.7),
    method: str | Method = "joint",
    loss_fn: Any = None,
    quantity: str = "params",
    draws: int = 3,
    ranking: Ranking | None = None,
    seed: int = 0,
) -> Bottlenecks:
    """Find the groups that are too narrow: those of which a pruning takes least.

    At each level a plan is made from every fold of the calibration samples. A group's figure is the mean over levels of

        removed share of the group / removed share of all units,

    both without the units that a floor of `ranking` keeps. So 1 is a group that is pruned as its neighbours are, or one
    of which a floor keeps all. Where there are labels or a loss, the expected decrease of the
    loss by one more unit stands beside it: the part of the wanted update `V = −∂L/∂z` of the layers that read the group
    which their inputs cannot express, `V⊥ = V − ΔW* h`, and of that what a new unit of the group could bring,

        gain = λ₁²,  λ₁ the largest singular value of  S^{−1/2} N,  S = E[a aᵀ],  N = E[a V⊥ᵀ],

    where `a` are the inputs of the layer that produces the group, at the positions that the kernels see. The order of
    the groups is that of the removed shares. The gain refers to the present point: it tells where training would put a
    unit next, is larger in later layers, and has little to say where training has converged.

    Cost: for each of `draws` folds, the saliencies of `method` on its samples and one plan for each level; for the
    gain two forward and backward passes over all samples, and a decomposition of each layer's second moments.

    Args:
        model: A trained model; left untouched.
        example_inputs: One batch as the model takes it.
        batches: Calibration data, as for `hp.prune`; a few hundred samples.
        levels: Removed shares of the budgeted quantity. Those that frozen layers put out of reach are left out, and
            named in `facts`.
        method: The criterion: `"sosp-h"` or `"sosp-i"`, as published without division by cost, `"joint"`, or another.
        loss_fn: A loss of `(output, targets)`, or `"next_word"`, as for `hp.prune`.
        quantity: What the levels count: `"params"`, `"macs"` or `"units"`.
        draws: Number of disjoint folds of the samples, not drawn at random: sample `i` belongs to fold `i mod draws`.
            The figures are means over them, with their spread. Where targets have no row for each sample, such as
            boxes, folds are of whole batches, at most as many as there are.
        ranking: Floors and layers that stay (`ignore`); then `per_cost` decides about costs for SOSP's criteria, too.
        seed: For whatever the method draws at random.

    Returns:
        The groups, the narrowest first.

    Raises:
        HessPruneError: One clear line: an argument, the data or the model does not fit, or no level is within reach.

    References:
        Nonnenmacher et al., SOSP, ICLR 2022 (the removed share); Verbockhaven et al., Growing Tiny Networks, TMLR 2024
        (the gain).

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> batches = [(torch.randn(48, 4), torch.arange(48) % 2)]
        >>> found = hp.find_bottlenecks(net, torch.zeros(1, 4), batches, levels=(0.5,))
        >>> found[0].group, sorted(found[0].removed)
        ('0', [0.5])
    """
    check_choice("quantity", quantity, QUANTITIES)
    check_range("draws", draws, low=1, integer=True)
    levels, method = _checked(levels), as_method(method)
    if ranking is None:
        ranking = Ranking(min_kept_fraction=0.0, per_cost=False if isinstance(method, SOSPH | SOSPI) else None)
    check_at_once(ranking)
    task = Task(
        model=model,
        example_inputs=example_inputs,
        batches=Rereadable.of(batches, model),
        budget=Budget.keeping(quantity, 0.5),
        method=method,
        loss_fn=loss_fn,
        ranking=ranking,
        seed=seed,
    ).ready()
    reached, shares = removed_shares(task, levels, draws)
    found = ordered(task, reached, shares, growth(task))
    return Bottlenecks(found, {**found.facts, "out_of_reach": [level for level in levels if level not in reached]})


def ordered(task: Task, levels: Sequence[float], shares: Any, gains: dict[str, float]) -> Bottlenecks:
    """Return the values for shares `(draws, levels, G)` and gains by group, the narrowest first."""
    units = shares.new_tensor([group.num_units for group in task.groups])
    free = shares.new_tensor([_unbound(group, task.ranking) for group in task.groups])
    removed = shares.mean(0) * units  # at each level, of each group
    own, all_units = removed / free, removed.sum(-1, keepdim=True) / free.sum()
    relative = (own / all_units.clamp(min=1e-9)).mean(0).nan_to_num(1.0)  # 0 / 0: a floor keeps the whole group
    macs = CostModel(task.model, task.example_inputs, task.groups).saved_next("macs")
    items = []
    for place, group in enumerate(task.groups):
        mean, spread = shares[:, :, place].mean(0), shares[:, :, place].std(0, correction=0)
        gain = gains.get(group.name)
        items.append(
            Bottleneck(
                group=group.name,
                num_units=group.num_units,
                removed=dict(zip(levels, mean.tolist(), strict=True)),
                spread=dict(zip(levels, spread.tolist(), strict=True)),
                relative=float(relative[place]),
                gain=gain,
                gain_per_mac=None if gain is None else gain / max(macs[group.name], 1),
            )
        )
    items.sort(key=lambda item: (item.relative, -(item.gain_per_mac or 0.0)))
    facts = {
        "method": str(task.method),
        "quantity": task.budget.quantity,
        "levels": list(levels),
        "draws": len(shares),
        "seed": task.seed,
        "order": [group.name for group in task.groups],
    }
    return Bottlenecks(items, facts)


def _unbound(group: Group, ranking: Ranking) -> int:
    """Return the number of units that no floor keeps; that one unit stays of every group is no floor."""
    may_go = removable(group, ranking)
    return group.num_units if may_go == group.num_units - 1 else may_go


def _checked(levels: Sequence[float]) -> tuple[float, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
        raise ArgumentError(f"`levels` must be removed shares such as (0.3, 0.5), got {shown(levels)}. Pass a tuple.")
    for level in levels:
        check_range("levels", level, low=1e-6, high=0.99)
    return tuple(dict.fromkeys(float(level) for level in levels))
