"""A temperature at which the curvature of a fitted model does not rest on a handful of samples.

A network is sure of the images it was trained on: with probabilities p near 0 and 1 the curvature `diag(p) − p pᵀ` of
the cross-entropy vanishes, and the few images that are left in doubt decide alone which units matter. Of 512 training
images a trained ResNet-20 has the curvature of 18. Images that it has not seen leave it in doubt more often. Softmax at
a temperature `T > 1` lets the others speak, too.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessprune.curvature.risk import (
    LossFn,
    SoftenedCrossEntropy,
    check_weight,
    counted_samples,
    logit_factor,
    module_of,
)
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_range
from hessprune.foundation.modules import call_model, device_of, logits_of
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import to_device

SHARE = 0.5
"""Of the samples that should count, in effect."""
HOTTEST = 64.0
"""At this temperature probabilities are all but equal."""
_NUMBERS = 1 << 22
"""Logits that are looked at."""


def softened(
    model: nn.Module, batches: Any, loss_fn: LossFn | None = None, *, temperature: float | Literal["auto"] = "auto"
) -> tuple[LossFn | None, float]:
    """Return a cross-entropy at a temperature T, and T; other losses come back as they are, with 1.

    Of masses `m_n = Σ_c p_c (1 − p_c)` of the samples' curvature, `(Σ m)² / (N Σ m²)` is the share of the samples that
    count, in effect (Kish). The automatic T is the lowest of 1 to 64, to a hundredth of it, at which that is at least
    one half. Takes one forward pass over as many batches as hold four million logits.

    Args:
        model: Any module; evaluation mode is borrowed.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        temperature: T, or `"auto"`.

    Returns:
        The loss, and T.

    Raises:
        ArgumentError: The temperature is not a positive number.

    Example:
        >>> sure = torch.tensor([[8.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
        >>> loss, temperature = softened(nn.Identity(), [(sure, torch.tensor([0, 0, 1]))])
        >>> round(temperature, 1)
        2.4
    """
    loss = module_of(loss_fn)
    if temperature != "auto":
        check_range("temperature", temperature, low=1e-3, high=1e3)
    if not isinstance(loss, nn.CrossEntropyLoss) or isinstance(loss, SoftenedCrossEntropy):
        return loss_fn, 1.0
    found = _lowest(loss, _logits(model, batches, loss)) if temperature == "auto" else float(temperature)
    return (loss_fn, 1.0) if found == 1 else (SoftenedCrossEntropy(loss, found), found)


def _lowest(loss: nn.CrossEntropyLoss, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the lowest temperature from 1 on at which enough samples count."""
    if _effective_share(loss, batches) >= SHARE:
        return 1.0
    low, high = 0.0, math.log(HOTTEST)
    while high - low > 0.01:
        middle = (low + high) / 2
        enough = _effective_share(SoftenedCrossEntropy(loss, math.exp(middle)), batches) >= SHARE
        low, high = (low, middle) if enough else (middle, high)
    return math.exp(high)


@torch.no_grad()
def _logits(model: nn.Module, batches: Any, loss: nn.CrossEntropyLoss) -> list[tuple[Tensor, Tensor]]:
    """Return logits and targets of as many batches as are needed, on the CPU; only of samples that count."""
    found, numbers, device = [], 0, device_of(model)
    with evaluation_mode(model):
        for inputs, targets in Rereadable.of(batches):
            logits = logits_of(call_model(model, to_device(inputs, device))).cpu()
            rows = counted_samples(loss, targets.cpu())
            found.append((logits[rows], targets.cpu()[rows]))
            numbers += logits.numel()
            if numbers >= _NUMBERS:
                break
    check_weight(sum(len(labels) for _, labels in found))
    return [(logits, labels) for logits, labels in found if len(labels)]


def _effective_share(loss: nn.CrossEntropyLoss, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the share of the samples that carry the curvature, in effect."""
    masses = torch.cat([logit_factor(loss, logits, targets).mass.sum(1) for logits, targets in batches])
    masses = masses / masses.max().clamp(min=torch.finfo(masses.dtype).tiny)
    square = float(masses.square().sum())
    return float(masses.sum()) ** 2 / (square * len(masses)) if square else 0.0
