"""A temperature at which the curvature of a trained model does not depend on a handful of samples.

A network is confident on its training images. With probabilities `p` near 0 and 1 the curvature `diag(p) − p pᵀ` of the
cross-entropy vanishes, and the few uncertain images alone decide the saliency of units: of 512 training images, 18
carry the curvature of a trained ResNet-20. A softmax at a temperature `T > 1` gives weight to the confident images.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_range
from hessprune.foundation.modules import device_of, forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import leading_size, to_device
from hessprune.objectives.objective import Objective, check_weight

SHARE = 0.5
"""Least effective share of the samples."""
HOTTEST = 64.0
"""Highest temperature; all probabilities are nearly equal there."""
_NUMBERS = 1 << 22
"""Number of values from which the temperature is computed."""


def softened(
    model: nn.Module, batches: Any, objective: Objective, *, temperature: float | Literal["auto"] = "auto"
) -> tuple[Objective, float]:
    """Return an objective whose softmax has a temperature `T`, and `T`; one without a softmax unchanged, with 1.

    Let `m_n = Σ_c p_c (1 − p_c)` be the mass of sample `n`. The effective share of the samples is `(Σ m)² / (N Σ m²)`
    (Kish). The automatic `T` is the lowest from 1 to 64, to within one percent, with an effective share of at least one
    half. Samples with ignored labels do not count. Takes one forward pass over batches of four million values in all.

    Args:
        model: Any module; it runs in evaluation mode and is left as it was.
        batches: Re-iterable of `(inputs, targets)`.
        objective: From `choose_objective`.
        temperature: `T`, or `"auto"`.

    Returns:
        The objective, and `T`.

    Raises:
        ArgumentError: The temperature is not a positive number.
        DataError: All targets are ignored by the loss.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature.softening import softened
        >>> from hessprune.objectives.given import GivenLoss
        >>> sure = torch.tensor([[8.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
        >>> batches = [(sure, torch.tensor([0, 0, 1]))]
        >>> objective, temperature = softened(nn.Identity(), batches, GivenLoss(loss_fn=None))
        >>> round(temperature, 1)
        2.4
    """
    if temperature != "auto":
        check_range("temperature", temperature, low=1e-3, high=1e3)
    if not objective.has_classes:
        return objective, 1.0
    value = _lowest(objective, _values(model, batches, objective)) if temperature == "auto" else float(temperature)
    return (objective if value == 1 else objective.softened(value)), value


Batch = tuple[Any, Any, list[tuple[Any, int]], Tensor]
"""Inputs, targets, outputs with the number of samples, and the values read from them."""


def _lowest(objective: Objective, batches: list[Batch]) -> float:
    """Return the lowest temperature, from 1 on, with a sufficient effective share."""
    if _effective_share(objective, batches) >= SHARE:
        return 1.0
    low, high = 0.0, math.log(HOTTEST)
    while high - low > 0.01:
        middle = (low + high) / 2
        enough = _effective_share(objective.softened(math.exp(middle)), batches) >= SHARE
        low, high = (low, middle) if enough else (middle, high)
    return math.exp(high)


@torch.no_grad()
def _values(model: nn.Module, batches: Any, objective: Objective) -> list[Batch]:
    """Return the first batches with their outputs."""
    read, numbers, device = [], 0, device_of(model)
    with evaluation_mode(model):
        for inputs, targets in Rereadable.of(batches, model):
            inputs, targets, samples = *to_device((inputs, targets), device), leading_size(inputs)
            output = forward(model, inputs)
            values = objective.read(output, samples, inputs)
            read.append((inputs, targets, [(output, samples)], values))
            numbers += values.numel()
            if numbers >= _NUMBERS:
                break
    return read


def _effective_share(objective: Objective, batches: list[Batch]) -> float:
    """Return the effective share of the samples with weight in the loss."""
    masses = []
    for inputs, targets, outputs, values in batches:
        loss = objective.on(inputs, targets, len(values))
        loss.see(outputs, values)
        factor = loss.factor(values)
        masses.append(factor.mass.sum(1)[loss.counted()].cpu())
    every = torch.cat(masses)
    check_weight(len(every))
    every = every / every.max().clamp(min=torch.finfo(every.dtype).tiny)
    square = float(every.square().sum())
    return float(every.sum()) ** 2 / (square * len(every)) if square else 0.0
