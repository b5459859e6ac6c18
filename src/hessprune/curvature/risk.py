r"""The loss as curvature sees it: its mean over batches, and a factor of its Hessian in the logits.

For a loss that is a mean over samples, `L = (1/W) Σ_n ℓ_n(f_n)`, the Hessian `∂²ℓ_n/∂f_n²` of every sample is
factored as `S_n S_nᵀ`. Cross-entropy has `diag(p) − p pᵀ`, whose Cholesky factor with the classes in the order of
falling probability is known in closed form: with `r_k = Σ_{j≥k} p_j` the mass from class `k` on,

    S_kk = √(p_k r_{k+1} / r_k) ,    S_jk = −p_j √(p_k / (r_k r_{k+1})) for j > k ,

so `C − 1` columns suffice, and after the first `k` of them the trace that is left is less than `r_{k+1}`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune._checks import check_labels
from hessprune._modules import call_model, device_of, logits_of, to_device
from hessprune._state import evaluation_mode
from hessprune.errors import ArgumentError, DataError, NumericalError

LossFn = Callable[[Tensor, Tensor], Tensor]


class LogitFactor(Protocol):
    """A factor `S_n` of every sample's loss Hessian in the logits; `K` columns each."""

    @property
    def weight(self) -> float:
        """What these samples add to the divisor `W` of the mean."""
        ...

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`; their sum is the trace of the loss Hessian in the logits."""
        ...

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return column `index[i]` of sample `rows[i]`, shaped like the logits of these samples; −1 gives zeros."""
        ...

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n` for the samples `rows`, given `noise` ξ of shape `(len(rows), K)`."""
        ...


@dataclass(frozen=True, kw_only=True)
class SoftmaxFactor:
    """Factor of `w (diag(p) − p pᵀ)` at each of `P` positions; column `k·P + t` is class rank `k` at position `t`."""

    probability: Tensor  # (N, C, P), falling along C
    order: Tensor  # (N, C, P)
    sample_weight: Tensor  # (N, P)
    shape: torch.Size
    weight: float

    @property
    def _tail(self) -> Tensor:
        """Return `r_k` for `k = 0 … C`, `(N, C + 1, P)`, summed from the small end."""
        tail = self.probability.flip(1).cumsum(1).flip(1)
        return torch.cat([tail, torch.zeros_like(tail[:, :1])], 1)

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        diagonal, below = self._parts(slice(None))
        squares = self.probability.square().flip(1).cumsum(1).flip(1)[:, 1:]
        return ((diagonal.square() + below.square() * squares) * self.sample_weight[:, None]).flatten(1)

    def _parts(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Return `S_kk` and `√(p_k / (r_k r_{k+1}))`, each `(n, C − 1, P)`."""
        p, tail = self.probability[rows, :-1], self._tail[rows]
        here, after = tail[:, :-2], tail[:, 1:-1]
        safe = after > 0
        below = torch.where(safe, p / (here * after).clamp(min=torch.finfo(p.dtype).tiny), 0).sqrt()
        return torch.where(safe, p * after / here, 0).sqrt(), below

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, (self.shape[1] - 1) * self.sample_weight.shape[1]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        p, weight = self.probability[rows], self.sample_weight[rows]
        noise = noise.to(p.dtype).view(len(rows), p.shape[1] - 1, -1)
        diagonal, below = self._parts(rows)
        above = F.pad((below * noise).cumsum(1), (0, 0, 1, 0))  # Σ_{k<j}
        u = F.pad(diagonal * noise, (0, 0, 0, 1)) - p * above
        u = torch.empty_like(u).scatter_(1, self.order[rows], u) * weight.sqrt()[:, None]
        return u.view(len(rows), *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class DiagonalFactor:
    """Factor of a diagonal Hessian: one column for each logit of a sample."""

    diagonal: Tensor  # (N, K)
    shape: torch.Size
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        return self.diagonal

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, self.diagonal.shape[1]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        return (self.diagonal[rows].sqrt() * noise).view(len(rows), *self.shape[1:])


@dataclass(frozen=True, kw_only=True)
class DenseFactor:
    """Factor given as a matrix for each sample."""

    matrix: Tensor  # (N, D, K)
    shape: torch.Size
    weight: float

    @property
    def mass(self) -> Tensor:
        """Squared norms of the columns, `(N, K)`."""
        return self.matrix.square().sum(1)

    def columns(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return one column of each sample."""
        return self.draw(rows, _one_hot(index, self.matrix.shape[2]))

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return `S_n ξ_n`."""
        return torch.einsum("ndk,nk->nd", self.matrix[rows], noise.to(self.matrix.dtype)).view(
            len(rows), *self.shape[1:]
        )


def _one_hot(index: Tensor, size: int) -> Tensor:
    """Return one row per entry of `index`, `(n, size)`; −1 gives zeros."""
    return (torch.arange(size, device=index.device) == index[:, None]).double()


def logit_factor(loss_fn: LossFn | None, logits: Tensor, targets: Tensor) -> LogitFactor:
    """Factor the loss Hessian in the logits, sample by sample.

    Cross-entropy (label smoothing, class weights, ignored labels, class probabilities, dense targets), mean squared
    error and binary cross-entropy with logits are known in closed form. Any other loss is differentiated twice; it
    must be the mean of a function of one sample's logits and target, convex in the logits.

    Args:
        loss_fn: A loss of `(logits, targets)` that averages; None means cross-entropy.
        logits: `(N, C, *)`.
        targets: What `loss_fn` expects.

    Returns:
        The factor, in float64.

    Raises:
        ArgumentError: The loss does not average, or is not convex in the logits.
        DataError: Labels are out of range.

    Example:
        >>> factor = logit_factor(None, torch.zeros(1, 2), torch.tensor([0]))
        >>> factor.mass  # p (1 − p) = 1/4, twice
        tensor([[0.5000]], dtype=torch.float64)
    """
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction != "mean":
        raise ArgumentError(f"`loss_fn` must average over samples, got reduction={reduction!r}. Use reduction='mean'.")
    logits = logits.detach().double()
    if loss_fn is None or loss_fn is F.cross_entropy:
        return _cross_entropy(nn.CrossEntropyLoss(), logits, targets)
    if isinstance(loss_fn, nn.CrossEntropyLoss):
        return _cross_entropy(loss_fn, logits, targets)
    if isinstance(loss_fn, nn.MSELoss) or loss_fn is F.mse_loss:
        flat = logits.flatten(1)
        diagonal = torch.full_like(flat, 2 / flat.shape[1])
        return DiagonalFactor(diagonal=diagonal, shape=logits.shape, weight=float(len(logits)))
    if isinstance(loss_fn, nn.BCEWithLogitsLoss) or loss_fn is F.binary_cross_entropy_with_logits:
        return _binary_cross_entropy(loss_fn, logits, targets)
    return _any_loss(loss_fn, logits, targets)


def _cross_entropy(loss: nn.CrossEntropyLoss, logits: Tensor, targets: Tensor) -> SoftmaxFactor:
    """`w (diag(p) − p pᵀ)` with the weight `w` of the sample's (smoothed) target."""
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
    p, order = logits.reshape(n, classes, -1).softmax(1).sort(dim=1, descending=True)
    divisor = loss_weight(loss, targets)
    return SoftmaxFactor(probability=p, order=order, sample_weight=sample_weight, shape=logits.shape, weight=divisor)


def loss_weight(loss_fn: LossFn | None, targets: Tensor) -> float:
    """Return what samples add to the divisor of a mean loss: class weights of counted labels, or their number."""
    loss = nn.CrossEntropyLoss() if loss_fn is None or loss_fn is F.cross_entropy else loss_fn
    if not isinstance(loss, nn.CrossEntropyLoss):
        return float(len(targets))
    if targets.is_floating_point():
        return targets.numel() / targets.shape[1]
    labels = targets[targets != loss.ignore_index]
    return float(labels.numel() if loss.weight is None else loss.weight.to(labels.device)[labels].double().sum())


def relevance(loss_fn: LossFn | None, logits: Tensor, targets: Tensor) -> Tensor | None:
    """Return what each sample brings to any product with the Hessian: mass of its curvature plus size of its gradient.

    None for losses that are not known in closed form.
    """
    known = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
    functions = (None, F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits)
    if not isinstance(loss_fn, known) and loss_fn not in functions:
        return None
    leaf = logits.detach().double().requires_grad_()
    with torch.enable_grad():
        (loss_fn or F.cross_entropy)(leaf, targets if not targets.is_floating_point() else targets.double()).backward()
    gradient = leaf.grad.flatten(1).abs().sum(1) if leaf.grad is not None else torch.zeros(len(logits))
    return gradient * loss_weight(loss_fn, targets) + logit_factor(loss_fn, logits, targets).mass.sum(1)


def _binary_cross_entropy(loss: Any, logits: Tensor, targets: Tensor) -> DiagonalFactor:
    """`w (y p⁺ + 1 − y) σ(f) (1 − σ(f)) / D`, where `p⁺` is the weight of positives."""
    second = logits.sigmoid() * (-logits).sigmoid() / logits[0].numel()
    if getattr(loss, "pos_weight", None) is not None:
        target = targets.to(logits)
        second = second * (target * loss.pos_weight.to(logits) + 1 - target)
    if getattr(loss, "weight", None) is not None:
        second = second * loss.weight.to(logits)
    return DiagonalFactor(diagonal=second.flatten(1), shape=logits.shape, weight=float(len(logits)))


def _any_loss(loss_fn: LossFn, logits: Tensor, targets: Tensor) -> DenseFactor:
    """Factor the Hessian that automatic differentiation finds, by its eigenvectors."""
    pairs = zip(logits, targets, strict=True)
    pairs = zip(logits, targets, strict=True)
    second = torch.autograd.functional.hessian
    hessians: Any = [second(lambda f, y=y: loss_fn(f[None], y[None]), f) for f, y in pairs]
    hessians = torch.stack(hessians).reshape(len(logits), logits[0].numel(), -1)
    values, vectors = torch.linalg.eigh((hessians + hessians.mT) / 2)
    if bool((values < -1e-8 * values.abs().amax().clamp(min=1e-300)).any()):
        raise ArgumentError(
            "`loss_fn` must be convex in the logits for `exact` and `rademacher`, got a Hessian with negative "
            "eigenvalues. Use estimator='hutchinson'."
        )
    matrix = (vectors * values.clamp(min=0).sqrt()[:, None]).flip(2)
    return DenseFactor(matrix=matrix, shape=logits.shape, weight=float(len(logits)))


def mean_loss(model: nn.Module, batches: Iterable[Any], loss_fn: LossFn | None = None) -> float:
    """Return the mean loss over all samples, in evaluation mode, computed twice to catch randomness.

    Args:
        model: Any module.
        batches: Re-iterable of `(inputs, targets)`.
        loss_fn: A loss that averages; None means cross-entropy.

    Returns:
        The mean over samples.

    Raises:
        NumericalError: The loss is not finite, or differs between two passes over the same data.
    """
    first, second = (_one_pass(model, batches, loss_fn or F.cross_entropy) for _ in range(2))
    if not torch.isfinite(torch.tensor(first)):
        raise NumericalError(f"the loss must be finite, got {first}. Check the weights, the inputs and their scale.")
    if abs(first - second) > 1e-5 * max(abs(first), abs(second)):
        raise NumericalError(
            f"the loss must not change between two passes, got {first} and {second}. Likely causes: (a) the batches "
            "are augmented or reshuffled each time, (b) the model draws random numbers in evaluation mode."
        )
    return first


@torch.no_grad()
def _one_pass(model: nn.Module, batches: Iterable[Any], loss_fn: LossFn) -> float:
    total, count, device = 0.0, 0, device_of(model)
    with evaluation_mode(model):
        for inputs, targets in batches:
            logits = logits_of(call_model(model, to_device(inputs, device)))
            total += float(loss_fn(logits, to_device(targets, device))) * len(targets)
            count += len(targets)
    if count == 0:
        raise DataError("`batches` must hold at least one sample, got none. Check path and split.")
    return total / count
