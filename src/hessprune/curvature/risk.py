"""The loss function: its weights, and a factor of its Hessian in the logits.

For a loss that is a mean over samples, `L = (1/W) Σ_n ℓ_n(f_n)`, the Hessian `∂²ℓ_n/∂f_n²` of every sample is
factored as `S_n S_nᵀ`.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.curvature.factors import DenseFactor, DiagonalFactor, LogitFactor, SoftmaxFactor
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import check_labels
from hessprune.foundation.trees import to_device

LossFn = Callable[[Tensor, Tensor], Tensor]


class SoftenedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of `f / T` with the temperature `T`; all other settings are those of `loss`."""

    def __init__(self, loss: nn.CrossEntropyLoss, temperature: float) -> None:
        settings = {"weight": loss.weight, "ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
        super().__init__(**settings)
        self.temperature = temperature

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples."""
        return super().forward(input / self.temperature, target)


def logit_factor(loss_fn: LossFn | None, logits: Tensor, targets: Tensor) -> LogitFactor:
    """Factor the loss Hessian in the logits, sample by sample.

    Cross-entropy (label smoothing, class weights, ignored labels, class probabilities, dense targets), softened or not,
    mean squared error and binary cross-entropy with logits have a closed form. Any other loss is differentiated twice,
    and must be the mean of a function of one sample's logits and target, convex in the logits.

    Args:
        loss_fn: A loss of `(logits, targets)` that averages; None means cross-entropy.
        logits: `(N, C, *)`.
        targets: The targets of `loss_fn`.

    Returns:
        The factor, in float64.

    Raises:
        ArgumentError: The loss does not average, or is not convex in the logits.
        DataError: Labels are out of range.

    Example:
        >>> import torch
        >>> from hessprune.curvature import logit_factor
        >>> factor = logit_factor(None, torch.zeros(1, 2), torch.tensor([0]))
        >>> factor.mass  # p (1 − p) = 1/4, twice
        tensor([[0.5000]], dtype=torch.float64)
    """
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction != "mean":
        raise ArgumentError(f"`loss_fn` must average over samples, got reduction={reduction!r}. Use reduction='mean'.")
    module, logits = module_of(loss_fn), logits.detach()
    if module is None and loss_fn is not None:
        return _any_loss(loss_fn, logits.float() if logits.dtype.itemsize < 4 else logits, targets)
    logits = logits.double()
    if isinstance(module, nn.CrossEntropyLoss):
        return _cross_entropy(module, logits, targets)
    if isinstance(module, nn.MSELoss):
        flat = logits.flatten(1)
        diagonal = torch.full_like(flat, 2 / flat.shape[1])
        return DiagonalFactor(diagonal=diagonal, shape=logits.shape, weight=float(len(logits)))
    return _binary_cross_entropy(module, logits, targets)


_KNOWN: tuple[type[nn.Module], ...] = (nn.CrossEntropyLoss, SoftenedCrossEntropy, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses in closed form."""
_FUNCTIONS: tuple[tuple[Any, type[nn.Module]], ...] = (
    (None, nn.CrossEntropyLoss),
    (F.cross_entropy, nn.CrossEntropyLoss),
    (F.mse_loss, nn.MSELoss),
    (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
)
"""Functions, and modules that compute the same loss."""


def module_of(loss_fn: LossFn | None) -> nn.Module | None:
    """Return a loss with a closed form as a module; None for other losses and subclasses with a new `forward`."""
    if isinstance(loss_fn, nn.Module):
        return loss_fn if any(type(loss_fn).forward is kind.forward for kind in _KNOWN) else None
    return next((kind() for function, kind in _FUNCTIONS if function is loss_fn), None)


def typed(loss_fn: LossFn | None, device: torch.device, dtype: torch.dtype) -> LossFn | None:
    """Return the loss with its tensors, such as class weights, on `device` in `dtype`."""
    return copy.deepcopy(loss_fn).to(device, dtype) if isinstance(loss_fn, nn.Module) else loss_fn


def _cross_entropy(loss: nn.CrossEntropyLoss, logits: Tensor, targets: Tensor) -> SoftmaxFactor:
    """Factor `w (diag(p) − p pᵀ) / T²`, with the weight `w` of the (smoothed) target and `p` at temperature `T`."""
    temperature = getattr(loss, "temperature", 1.0)
    n, classes = logits.shape[:2]
    class_weight = torch.ones(classes).to(logits) if loss.weight is None else loss.weight.to(logits)
    if targets.is_floating_point():
        plain = torch.einsum("ncp,c->np", targets.to(logits).reshape(n, classes, -1), class_weight)
        valid = torch.ones_like(plain)
    else:
        check_labels(targets.where(targets != loss.ignore_index, -100), classes)
        valid = (targets != loss.ignore_index).reshape(n, -1)
        plain = class_weight[targets.reshape(n, -1).clamp(0, classes - 1)] * valid
    sample_weight = (1 - loss.label_smoothing) * plain + loss.label_smoothing * class_weight.mean() * valid
    sample_weight = sample_weight / temperature**2
    p, order = (logits / temperature).reshape(n, classes, -1).softmax(1).sort(dim=1, descending=True)
    divisor = loss_weight(loss, targets)
    return SoftmaxFactor(probability=p, order=order, sample_weight=sample_weight, shape=logits.shape, weight=divisor)


def loss_weight(loss_fn: LossFn | None, targets: Tensor) -> float:
    """Return the weight of samples in the divisor of a mean loss: class weights of counted labels, or their number."""
    loss = module_of(loss_fn)
    if not isinstance(loss, nn.CrossEntropyLoss):
        return float(len(targets))
    if targets.is_floating_point():
        return targets.numel() / targets.shape[1]
    labels = targets[targets != loss.ignore_index]
    return float(labels.numel() if loss.weight is None else loss.weight.to(labels.device)[labels].double().sum())


def counted_samples(loss_fn: LossFn | None, targets: Tensor) -> Tensor:
    """Return a mask of the samples with weight in a mean loss, `(N,)` bool: those with a label that is not ignored."""
    loss = module_of(loss_fn)
    if not isinstance(loss, nn.CrossEntropyLoss) or targets.is_floating_point():
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    counted = targets != loss.ignore_index
    if loss.weight is not None:
        counted = counted & (
            loss.weight.to(targets.device)[targets.where(counted, 0).clamp(0, len(loss.weight) - 1)] > 0
        )
    return counted.flatten(1).any(1) if counted.dim() > 1 else counted


def check_weight(weight: float) -> None:
    """Raise unless the samples of a data set have weight in the loss.

    Raises:
        DataError: All labels are ignored, or of classes of weight 0.
    """
    if not weight:
        raise DataError("`batches` must hold at least one label that counts, got only ignored ones. Check the targets.")


def relevance(loss_fn: LossFn | None, logits: Tensor, targets: Tensor) -> Tensor | None:
    """Return a sample's relevance to Hessian products: mass of its curvature plus absolute sum of its gradient, `(N,)`.

    None for losses without a closed form.
    """
    loss = typed(module_of(loss_fn), logits.device, torch.float64)
    if loss is None:
        return None
    if not loss_weight(loss, targets):
        return logits.new_zeros(len(logits), dtype=torch.float64)
    leaf = logits.detach().double().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf, to_device(targets, leaf.device, leaf.dtype))
    gradient = torch.autograd.grad(value, leaf)[0].flatten(1).abs().sum(1)
    return gradient * loss_weight(loss_fn, targets) + logit_factor(loss_fn, logits, targets).mass.sum(1)


def _binary_cross_entropy(loss: Any, logits: Tensor, targets: Tensor) -> DiagonalFactor:
    """Factor `w (y p⁺ + 1 − y) σ(f) (1 − σ(f)) / D`, where `p⁺` is the weight of positives."""
    second = logits.sigmoid() * (-logits).sigmoid() / logits[0].numel()
    if getattr(loss, "pos_weight", None) is not None:
        target = targets.to(logits)
        second = second * (target * loss.pos_weight.to(logits) + 1 - target)
    if getattr(loss, "weight", None) is not None:
        second = second * loss.weight.to(logits)
    return DiagonalFactor(diagonal=second.flatten(1), shape=logits.shape, weight=float(len(logits)))


def _any_loss(loss_fn: LossFn, logits: Tensor, targets: Tensor) -> DenseFactor:
    """Factor the Hessian of any loss, from automatic differentiation and eigenvectors."""
    targets = to_device(targets, logits.device, logits.dtype)
    check_is_mean(loss_fn, logits, targets)
    pairs = zip(logits, targets, strict=True)
    second = torch.autograd.functional.hessian
    hessians: Any = [second(lambda f, y=y: loss_fn(f[None], y[None]), f) for f, y in pairs]
    hessians = torch.stack(hessians).reshape(len(logits), logits[0].numel(), -1).double()
    values, vectors = torch.linalg.eigh((hessians + hessians.mT) / 2)
    noise = 100 * torch.finfo(logits.dtype).eps
    if bool((values < -noise * values.abs().amax().clamp(min=1e-300)).any()):
        raise ArgumentError(
            "`loss_fn` must be convex in the logits here, got a Hessian with negative eigenvalues. Use "
            "method=hp.HAP(estimator='hutchinson'), or the estimator 'hutchinson' for traces alone."
        )
    matrix = (vectors * values.clamp(min=0).sqrt()[:, None]).flip(2)
    return DenseFactor(matrix=matrix, shape=logits.shape, weight=float(len(logits)))


def check_is_mean(loss_fn: LossFn, logits: Tensor, targets: Tensor) -> None:
    """Raise unless the loss of these samples is the mean of their own losses.

    Raises:
        ArgumentError: The loss is a sum, weighs or ignores samples, or lets samples influence each other.
    """
    whole = loss_fn(logits, targets).detach()
    mean = torch.stack([loss_fn(f[None], y[None]).detach() for f, y in zip(logits, targets, strict=True)]).mean()
    if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-6):
        raise ArgumentError(
            f"`loss_fn` must be the mean of the samples' own losses, got {float(whole):.6g} for a batch and "
            f"{float(mean):.6g} on average for its samples. Average over samples; to weigh or ignore labels, use "
            "nn.CrossEntropyLoss, which is known in closed form."
        )
