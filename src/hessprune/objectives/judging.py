"""Judge a model by an objective: the mean loss over batches, in one pass."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from hessprune.foundation.modules import device_of, forward
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, sample_rows, to_device
from hessprune.objectives.objective import Objective, check_weight

SAME = 1e-3
"""Relative difference up to which a loss is the mean of those of two parts."""


@torch.no_grad()
def splits(objective: Objective, model: nn.Module, inputs: Any, targets: Any) -> bool:
    """Return whether a loss is the mean of those of two parts of a batch, with the rows of the targets cut likewise.

    The targets of a detector may be boxes of all images, by chance as many as images. Costs a forward pass, and nothing
    for a loss that is known.
    """
    if not objective.takes_anything:
        return True
    inputs, targets = to_device((inputs, targets), device_of(model))
    samples = leading_size(inputs)
    parts = torch.arange(samples, device="cpu").tensor_split(2)
    with seeded(0), evaluation_mode(model):
        output = forward(model, inputs)
        whole, _ = objective.judge(output, None, inputs, targets, samples)
        try:
            cut = [(sample_rows(inputs, rows), sample_rows(targets, rows), len(rows)) for rows in parts]
            losses = [objective.judge(forward(model, x), None, x, y, size)[0] * size for x, y, size in cut]
        except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError):  # the loss takes no half of targets
            return False
    return abs(sum(losses) / samples - whole) <= SAME * max(abs(whole), SAME)


@torch.no_grad()
def mean_loss(objective: Objective, dense: nn.Module, model: nn.Module, batches: Any) -> float:
    """Return the mean loss of a model in evaluation mode; the dense model runs only if the objective compares.

    Args:
        objective: What judges.
        dense: The model whose outputs are the targets of an objective that compares.
        model: The model that is judged.
        batches: Pairs of inputs and targets, such as `Rereadable`.

    Raises:
        DataError: No sample counts.

    Example:
        >>> import torch
        >>> from hessprune.objectives.given import GivenLoss
        >>> data = [(torch.zeros(2, 2), torch.tensor([0, 1]))]
        >>> round(mean_loss(GivenLoss(loss_fn=None), nn.Identity(), nn.Identity(), data), 4)  # ln 2
        0.6931
    """
    return mean_losses(objective, dense, [model], batches)[0]


@torch.no_grad()
def mean_losses(objective: Objective, dense: nn.Module, models: Sequence[nn.Module], batches: Any) -> list[float]:
    """Return the mean loss of each of some models as `mean_loss` does; the dense model runs once for all of them."""
    totals, weight, share = [0.0] * len(models), 0.0, 0.0
    device = device_of(models[0])
    with ExitStack() as modes:
        for model in (dense, *models):
            modes.enter_context(evaluation_mode(model))
        for number, (inputs, targets) in enumerate(batches):
            inputs, targets = to_device((inputs, targets), device)
            with seeded(number):
                reference = forward(dense, inputs) if objective.compares else None
            for place, model in enumerate(models):
                with seeded(number):  # what is drawn in a forward is drawn alike in all of them
                    output = forward(model, inputs)
                loss, share = objective.judge(output, reference, inputs, targets, leading_size(inputs))
                totals[place] += share * loss
            weight += share
    check_weight(weight)
    return [total / weight for total in totals]
