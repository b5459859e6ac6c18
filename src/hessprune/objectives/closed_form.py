"""Losses of logits in closed form: their weights, and a factor of their Hessian in the logits.

For a loss that is a mean over samples, `L = (1/W) Σ_n ℓ_n(f_n)`, the Hessian `∂²ℓ_n/∂f_n²` of every sample is
factored as `S_n S_nᵀ`.
"""

import contextlib
import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import DataError
from hessprune.foundation.checks import check_labels
from hessprune.foundation.losses import LossFn, as_cross_entropy, labels_for, loss_weight
from hessprune.foundation.misfits import batching
from hessprune.foundation.trees import describe
from hessprune.objectives.factors import DiagonalFactor, LogitFactor, SoftmaxFactor
from hessprune.objectives.objective import BatchLoss


class SoftenedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of `f / T` with the temperature `T`; all other settings are those of `loss`."""

    def __init__(self, loss: nn.CrossEntropyLoss, temperature: float) -> None:
        settings = {"weight": loss.weight, "ignore_index": loss.ignore_index, "label_smoothing": loss.label_smoothing}
        super().__init__(**settings)
        self.temperature = temperature

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples."""
        return super().forward(input / self.temperature, target)


_KNOWN: tuple[type[nn.Module], ...] = (SoftenedCrossEntropy, nn.MSELoss, nn.BCEWithLogitsLoss)
"""Losses in closed form, besides cross-entropy."""
_FUNCTIONS: tuple[tuple[Any, type[nn.Module]], ...] = (
    (F.mse_loss, nn.MSELoss),
    (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
)
"""Functions, and modules that compute the same loss."""


def module_of(loss_fn: LossFn | None) -> nn.Module | None:
    """Return a loss with a closed form as a module; None for other losses and subclasses with a new `forward`."""
    if (entropy := as_cross_entropy(loss_fn)) is not None:
        return entropy
    if isinstance(loss_fn, nn.Module):
        return loss_fn if any(type(loss_fn).forward is kind.forward for kind in _KNOWN) else None
    return next((kind() for function, kind in _FUNCTIONS if function is loss_fn), None)


def typed(loss_fn: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the loss with its tensors, such as class weights, on `device` in `dtype`."""
    return copy.deepcopy(loss_fn).to(device, dtype) if isinstance(loss_fn, nn.Module) else loss_fn


class ClosedForm(BatchLoss):
    """A loss in closed form on one batch.

    Args:
        module: The loss, from `module_of`.
        targets: One entry for each sample.
        samples: Number of samples.

    Raises:
        DataError: There is no tensor of targets, or one of another length.
    """

    def __init__(self, module: nn.Module, targets: Any, samples: int) -> None:
        self.module, self.targets, self.samples = module, _tensor(targets, samples), samples
        self._fitted = False

    def counted(self) -> Tensor:
        """Return the rows of the samples with a label that is not ignored."""
        return counted_samples(self.module, self.targets).nonzero().squeeze(1)

    def weight(self, rows: Tensor | None = None) -> float:
        """Return the weight of samples in the divisor."""
        return loss_weight(self.module, self._of(rows))

    def factor(self, values: Tensor, rows: Tensor | None = None) -> LogitFactor:
        """Factor the Hessian."""
        self._fit(values)
        return closed_factor(self.module, values.detach().double(), self._of(rows))

    def loss(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss."""
        self._fit(values)
        targets = self._of(rows)
        loss = typed(self.module, values.device, values.dtype)
        return loss(values, targets.to(values.dtype) if targets.is_floating_point() else targets)

    def rises(self, values: Tensor, rows: Tensor, shifts: Tensor) -> Tensor:
        """Return the rises in float64: each is a small difference of large numbers."""
        return super().rises(values.double(), rows, shifts)

    def relevance(self, values: Tensor) -> Tensor:
        """Return the mass of a sample's curvature plus the absolute sum of its gradient."""
        if not self.weight():
            return values.new_zeros(len(values), dtype=torch.float64)
        gradient = self.slope(values.double()).flatten(1).abs().sum(1)
        return gradient * self.weight() + self.factor(values).mass.sum(1)

    def _fit(self, values: Tensor) -> None:
        """Bring the targets into the form that the loss takes, once the shape of the values is known."""
        if not self._fitted:
            every = values.detach()[:1].expand(self.samples, *values.shape[1:])
            self.targets, self._fitted = fitting(self.module, every, self.targets), True

    def _of(self, rows: Tensor | None) -> Tensor:
        return self.targets if rows is None else self.targets[rows.to(self.targets.device)]


def _tensor(targets: Any, samples: int) -> Tensor:
    if not isinstance(targets, Tensor):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            targets = torch.as_tensor(targets, device="cpu")
    if not isinstance(targets, Tensor) or targets.dim() == 0 or len(targets) != samples:
        raise DataError(
            f"targets in `batches` must hold one entry for each of {samples} samples, got {describe(targets)}. "
            f"Give (inputs, targets), or the loss that takes these targets as `loss_fn`.{batching(targets)}"
        )
    return targets if targets.is_floating_point() else targets.long()


def fitting(module: nn.Module, values: Tensor, targets: Any, name: str = "batches") -> Tensor:
    """Return targets in the form that a loss takes, on the device of the values.

    Raises:
        DataError: They do not fit.
    """
    if isinstance(module, nn.CrossEntropyLoss):
        return labels_for(values, targets, name, ignore_index=module.ignore_index)
    targets = _tensor(targets, len(values))
    if targets.numel() != values.numel():
        raise DataError(
            f"targets in `{name}` must hold one number per output for {type(module).__name__}, got "
            f"{describe(targets)} for outputs {describe(values)}. Give targets of that shape, or another `loss_fn`."
        )
    return targets.to(values.device, values.dtype).reshape(values.shape)


def closed_factor(module: nn.Module, logits: Tensor, targets: Tensor) -> LogitFactor:
    """Factor the Hessian of a loss in closed form, sample by sample."""
    if isinstance(module, nn.CrossEntropyLoss):
        return _cross_entropy(module, logits, targets)
    if isinstance(module, nn.MSELoss):
        flat = logits.reshape(len(logits), -1)
        diagonal = torch.full_like(flat, 2 / flat.shape[1])
        return DiagonalFactor(diagonal=diagonal, shape=logits.shape, weight=float(len(logits)))
    return _binary_cross_entropy(module, logits, targets)


def _cross_entropy(loss: nn.CrossEntropyLoss, logits: Tensor, targets: Tensor) -> SoftmaxFactor:
    """Factor `w (diag(p) − p pᵀ) / T²`, with the weight `w` of the (smoothed) target and `p` at temperature `T`."""
    temperature = getattr(loss, "temperature", 1.0)
    n, classes = logits.shape[:2]
    class_weight = torch.ones(classes, device="cpu").to(logits) if loss.weight is None else loss.weight.to(logits)
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


def _binary_cross_entropy(loss: Any, logits: Tensor, targets: Tensor) -> DiagonalFactor:
    """Factor `w (y p⁺ + 1 − y) σ(f) (1 − σ(f)) / D`, where `p⁺` is the weight of positives."""
    second = logits.sigmoid() * (-logits).sigmoid() / logits[0].numel()
    if getattr(loss, "pos_weight", None) is not None:
        target = targets.to(logits)
        second = second * (target * loss.pos_weight.to(logits) + 1 - target)
    if getattr(loss, "weight", None) is not None:
        second = second * loss.weight.to(logits)
    return DiagonalFactor(diagonal=second.reshape(len(logits), -1), shape=logits.shape, weight=float(len(logits)))
