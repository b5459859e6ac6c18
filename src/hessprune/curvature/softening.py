"""A temperature at which the curvature of a trained model does not depend on a handful of samples.

A network is confident on its training images. With probabilities `p` near 0 and 1 the curvature `diag(p) − p pᵀ` of the
cross-entropy vanishes, and the few uncertain images alone decide the saliency of units: of 512 training images, 18
carry the curvature of a trained ResNet-20. A softmax at a temperature `T > 1` gives weight to the confident images.
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
"""Least effective share of the samples."""
HOTTEST = 64.0
"""Highest temperature; all probabilities are nearly equal there."""
_NUMBERS = 1 << 22
"""Number of logits from which the temperature is computed."""


def softened(
    model: nn.Module, batches: Any, loss_fn: LossFn | None = None, *, temperature: float | Literal["auto"] = "auto"
) -> tuple[LossFn | None, float]:
    """Return a cross-entropy at a temperature `T`, and `T`; return any other loss unchanged, with 1.

    Let `m_n = Σ_c p_c (1 − p_c)` be the mass of sample `n`. The effective share of the samples is `(Σ m)² / (N Σ m²)`
    (Kish). The automatic `T` is the lowest from 1 to 64, to within one percent, with an effective share of at least one
    half. Samples with ignored labels do not count. Takes one forward pass over batches of four million logits in all.

    Args:
        model: Any module; it runs in evaluation mode and is left as it was.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.
        temperature: `T`, or `"auto"`.

    Returns:
        The loss, and `T`.

    Raises:
        ArgumentError: The temperature is not a positive number.
        DataError: All targets are ignored by the loss.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.curvature.softening import softened
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
    value = _lowest(loss, _logits(model, batches, loss)) if temperature == "auto" else float(temperature)
    return (loss_fn, 1.0) if value == 1 else (SoftenedCrossEntropy(loss, value), value)


def _lowest(loss: nn.CrossEntropyLoss, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the lowest temperature, from 1 on, with a sufficient effective share."""
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
    """Return logits and targets of the first batches, on the CPU, for samples with weight in the loss."""
    pairs, numbers, device = [], 0, device_of(model)
    with evaluation_mode(model):
        for inputs, targets in Rereadable.of(batches):
            logits = logits_of(call_model(model, to_device(inputs, device))).cpu()
            rows = counted_samples(loss, targets.cpu())
            pairs.append((logits[rows], targets.cpu()[rows]))
            numbers += logits.numel()
            if numbers >= _NUMBERS:
                break
    check_weight(sum(len(labels) for _, labels in pairs))
    return [(logits, labels) for logits, labels in pairs if len(labels)]


def _effective_share(loss: nn.CrossEntropyLoss, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return the effective share of the samples."""
    masses = torch.cat([logit_factor(loss, logits, targets).mass.sum(1) for logits, targets in batches])
    masses = masses / masses.max().clamp(min=torch.finfo(masses.dtype).tiny)
    square = float(masses.square().sum())
    return float(masses.sum()) ** 2 / (square * len(masses)) if square else 0.0
