"""Compensation: least squares adapts the remaining weights to the removal of units, without training.

Each layer of the pruned model is refitted in forward order (`refitting`): on its inputs in the pruned model it then
reproduces the dense layer's output. A trial decides if that is worth it: on a few calibration samples, and only if
that fails on four fifths of them.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.arrival import arrived
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches
from hessprune.objectives.choice import Chosen, choose_objective
from hessprune.objectives.judging import mean_losses, splits
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples, gather
from hessprune.surgery.fits import check_pair
from hessprune.surgery.refitting import refitted

TRIAL_ROWS = 0.25
"""Share of the usual positions in a trial."""
FEW = 64
"""Samples of the first trial: what pays off on so few does so on all, and it costs a quarter of a second one."""
MIN_SAMPLES = 10
"""Fewest samples: fewer cannot be split into those that fit and those that judge."""


@torch.inference_mode(False)
def compensate(
    dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any, *, loss_fn: Any = None, outputs: Chosen = None
) -> nn.Module:
    """Refit a pruned model's layers to the dense layers' outputs, if that lowers the loss on held-out samples.

    For each convolution or linear layer in forward order, `min_W ‖Y − X W‖² + λ ‖W − W₀‖²`, where `X` are the layer's
    inputs in the pruned model, whose earlier layers are refitted already, and `Y` the dense layer's outputs. If `Y` is
    added to an earlier tensor `R`, scaled by `s = γ / σ` of a BatchNorm in between, `s X W` is fitted to
    `s Y + R − R'`, with the pruned model's `R'`. A layer that is used several times is fitted to all of its uses. `λ`
    is chosen on held-out samples. The constant goes into the bias, or into the BatchNorm behind the layer. Normal
    equations in float64. Batches may have several sizes.

    Cost: as much as one (ViT-B/16) to three (ResNet-50) forward and backward passes over the samples, and `8 K²` bytes
    for the layer of `K` inputs at hand, beside the activations of the samples that are held.

    Args:
        dense: The model the plan was made for.
        pruned: The model from `apply_plan`; both models are left untouched.
        plan: The plan between them.
        batches: Calibration data, a re-iterable of inputs, of `(inputs, targets)`, or of mappings.
        loss_fn: The loss on held-out samples, or `"next_word"`; the distance to the dense model's outputs if None.
        outputs: Names of the outputs that are compared, or weights by name; all of them if None.

    Returns:
        A new model, refitted on all samples; an equal copy of `pruned` if there are fewer than ten samples, or if
        neither a refit on some 64 of them nor one on four fifths lowers the loss on the last fifth.

    Raises:
        ArgumentError: `plan` was made for another model than `dense`, or gives another one than `pruned`.
        DataError: `batches` cannot be read twice or is empty.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, batches = torch.zeros(1, 4), [(torch.randn(64, 4), torch.arange(64) % 2)]
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(macs=0.5), example_inputs=x)
        >>> hp.compensate(net, hp.apply_plan(net, plan), plan, batches)[2].in_features
        4
    """
    dense, pruned = arrived(dense), arrived(pruned)
    check_pair(dense, pruned, plan)
    batches = Rereadable.of(batches, dense)
    check_batches(batches)
    objective = choose_objective(dense, batches, loss_fn, outputs=outputs)
    samples = gather(batches, pruned, splits=partial(splits, objective, dense))
    if sum(map(len, samples)) < MIN_SAMPLES:
        return copy.deepcopy(pruned)
    test = held_out(samples)
    judges = [(part.inputs, part.targets) for part in left_out(samples, test)]
    for mask in _trials(~test):
        fitting = [part.only(mask) for part in samples if bool(mask[part.places].any())]
        if not fitting:
            continue
        trial = refitted(dense, pruned, plan, fitting, TRIAL_ROWS)
        before, after = mean_losses(objective, dense, [pruned, trial], judges)
        if after < before:
            return refitted(dense, pruned, plan, samples)
    return copy.deepcopy(pruned)


def _trials(mask: Tensor) -> list[Tensor]:
    """Return masks of the samples of each trial: some of those of a mask, evenly spread, where there are many; all."""
    places = mask.nonzero().squeeze(1)
    stride = len(places) // FEW
    some = torch.zeros_like(mask)
    some[places[:: max(1, stride)]] = True
    return [some, mask] if stride > 1 else [mask]


def held_out(samples: Sequence[Samples]) -> Tensor:
    """Return the places whose samples judge a fit, a mask: every fifth.

    Of batches whose targets belong to them as a whole, every fifth; fewer than five of them judge and fit.
    """
    test = torch.arange(1 + max(int(part.places.max()) for part in samples), device="cpu") % 5 == 0
    wholes = [part for part in samples if not part.can_be_split]
    for number, part in enumerate(wholes if len(wholes) >= 5 else ()):
        test[part.places] = number % 5 == 0
    return test


def left_out(samples: Sequence[Samples], test: Tensor) -> list[Samples]:
    """Return the samples that judge; all of a batch whose targets belong to it as a whole."""
    parts = (part for part in samples if bool(test[part.places].any()))
    return [part.only(test) if part.can_be_split else part for part in parts]


def refit(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Return a refitted copy of `pruned`, with no trial on held-out samples; for models that are only measured."""
    return refitted(dense, pruned, plan, gather(Rereadable.of(batches, dense), pruned))
