"""The factor of a loss's Hessian in the outputs, for a loss and targets as they are."""

from typing import Any

import torch
from torch import Tensor

from hessprune.foundation.losses import LossFn
from hessprune.foundation.returned import check_average
from hessprune.objectives.factors import LogitFactor
from hessprune.objectives.given import GivenLoss
from hessprune.objectives.outputs import Outputs


def logit_factor(loss_fn: LossFn | None, logits: Tensor, targets: Any) -> LogitFactor:
    """Factor the loss Hessian in the logits, sample by sample.

    Cross-entropy (label smoothing, class weights, ignored labels, class probabilities, dense targets), softened or not,
    mean squared error and binary cross-entropy with logits have a closed form. The Hessian of any other loss is
    differentiated twice if it is diagonal, or small and positive semi-definite. Else the empirical Fisher stands for
    it, `g gᵀ` with the gradient `g` of a sample's loss.

    Args:
        loss_fn: A loss of `(logits, targets)` that averages; None means cross-entropy.
        logits: `(N, C, *)`.
        targets: The targets of `loss_fn`.

    Returns:
        The factor, in float64.

    Raises:
        ArgumentError: The loss does not average, or does not depend on the logits.
        DataError: Labels are out of range.

    Example:
        >>> import torch
        >>> from hessprune.curvature import logit_factor
        >>> factor = logit_factor(None, torch.zeros(1, 2), torch.tensor([0]))
        >>> factor.mass  # p (1 − p) = 1/4, twice
        tensor([[0.5000]], dtype=torch.float64)
    """
    check_average(loss_fn if loss_fn is not None else torch.nn.CrossEntropyLoss())
    logits = logits.detach()
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    outputs = Outputs.find(logits[[0, -1]], logits[:1])
    loss = GivenLoss(loss_fn=loss_fn, outputs=outputs).on(None, targets, len(logits))
    loss.see([(logits, len(logits))], logits)
    return loss.factor(logits)
