"""Losses without a closed form: whatever a function makes of the whole output and the targets of a batch.

The loss is always called on whole batches, so that targets may be anything. For a mean over samples, the gradient in
one sample's outputs is that of its own loss over the number of samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, NumericalError, UnsupportedModelError
from hessprune.foundation.losses import LossFn
from hessprune.foundation.returned import check_depends, loss_on
from hessprune.foundation.trees import describe
from hessprune.objectives.factors import DenseFactor, DiagonalFactor
from hessprune.objectives.objective import BatchLoss
from hessprune.objectives.outputs import Outputs, named_outputs, with_tensors

FEW = 16
"""Values of a sample up to which two random signs may coincide; the whole Hessian is cheap there."""
MOST_ENTRIES = 256
"""Most values of a sample of which a whole Hessian is held."""
MOST_BYTES = 256 << 20
"""Most memory for the whole Hessians of a batch."""
SAME = 1e-4
"""Relative difference up to which two measurements of a diagonal agree."""
Curvature = DiagonalFactor | DenseFactor


class AnyLoss(BatchLoss):
    """Any loss on one batch.

    The Hessian in the outputs is exact where it is diagonal (the loss treats every number by itself), or small and
    positive semi-definite. Else the empirical Fisher stands for it: the outer product of each sample's gradient.

    Args:
        loss_fn: From the whole output and the targets to a number.
        outputs: The output tensors that it reads.
        targets: Of the batch, in any form.
        samples: Number of samples.
    """

    needs_outputs = True

    def __init__(self, loss_fn: LossFn, outputs: Outputs, targets: Any, samples: int) -> None:
        self.loss_fn, self.outputs, self.targets, self.samples = loss_fn, outputs, targets, samples
        self._factor: Curvature | None = None
        self.is_first = False
        """True for the first batch, which checks what the loss reads."""
        self.curvature = ""
        """Which curvature was used, once it is known."""

    def see(self, outputs: Sequence[tuple[Any, int]], values: Tensor) -> None:
        """Take the outputs of the batch."""
        super().see(outputs, values)
        self._template = self.outputs.merged(outputs)
        if self.is_first and len(outputs) == 1:
            self._check_read()

    def _check_read(self) -> None:
        """Raise if the loss reads an output without an axis of samples.

        Raises:
            UnsupportedModelError: It does.
        """
        read = {*self.outputs.names}
        others = {
            name: tensor.detach().requires_grad_()
            for name, tensor in named_outputs(self._template)
            if name not in read and tensor.is_floating_point()
        }
        if not others:
            return
        with torch.enable_grad():
            values = self._values.detach().requires_grad_()
            output = with_tensors(self.outputs.written(values, self._template, self.samples), others)
            loss = loss_on(self.loss_fn, output, self.targets)
            found = torch.autograd.grad(loss, [*others.values()], allow_unused=True) if loss.requires_grad else ()
        for (name, tensor), gradient in zip(others.items(), found, strict=False):
            if gradient is not None and bool(gradient.any()):
                raise UnsupportedModelError(
                    f"`loss_fn` must read outputs with an axis of samples, got one that reads {name!r}, "
                    f"{describe(tensor)} for {self.samples} samples. Compute it in the loss from "
                    f"{', '.join(map(repr, sorted(read)))}, or use method='magnitude'."
                )

    @property
    def _values(self) -> Tensor:
        assert self.seen is not None, "see comes first"
        return self.seen

    def counted(self) -> Tensor:
        """Return all rows."""
        return torch.arange(self.samples, device=self._values.device)

    def weight(self, rows: Tensor | None = None) -> float:
        """Return the number of samples."""
        return float(self.samples if rows is None else len(rows))

    def loss(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of the batch where these samples have other values, scaled to a mean over these samples."""
        values = values.to(self._values.dtype)
        whole = values if len(rows) == self.samples else self._values.index_copy(0, rows, values)
        loss = loss_on(self.loss_fn, self.outputs.written(whole, self._template, self.samples), self.targets)
        if values.requires_grad:
            check_depends(loss)
            _check_finite(loss)
        return loss * (self.samples / len(rows))

    def factor(self, values: Tensor, rows: Tensor | None = None) -> Curvature:  # noqa: ARG002 - those seen count
        """Factor the Hessian, computed once for the batch."""
        if self._factor is None:
            self._factor, self.curvature = self._curvature()
        return self._factor if rows is None else _rows_of(self._factor, rows)

    def _curvature(self) -> tuple[Curvature, str]:
        leaf = self._values.clone().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(leaf, torch.arange(self.samples, device=leaf.device)) * self.samples
            twice = True
            try:
                (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True, allow_unused=True)
            except RuntimeError:  # some functions have no graph of their gradient
                twice = False
                (gradient,) = torch.autograd.grad(self.loss(leaf, self.counted()) * self.samples, leaf)
        if gradient is None:
            raise ArgumentError(
                "`loss_fn` must depend on the model's outputs, got a loss without a gradient in them. Compute it from "
                "the output with torch's own functions."
            )
        exact = _Second(leaf, gradient).factor() if twice and gradient.requires_grad else None
        if exact is not None:
            return exact, "Hessian of the loss"
        fisher = gradient.detach().reshape(self.samples, -1, 1).double()
        return DenseFactor(matrix=fisher, shape=leaf.shape, weight=float(self.samples)), "empirical Fisher"


class _Second:
    """The Hessian of the samples' losses in their values, from products."""

    def __init__(self, leaf: Tensor, gradient: Tensor) -> None:
        self._leaf, self._gradient = leaf, gradient
        self._noise = 100 * torch.finfo(leaf.dtype).eps

    def factor(self) -> Curvature | None:
        """Return a factor of the Hessian; None where it is zero, indefinite, too large or does not exist."""
        try:
            first, second = self._diagonal(0), self._diagonal(1)
        except RuntimeError:  # no second derivative
            return None
        largest = float(torch.maximum(first.abs().max(), second.abs().max()))
        if not largest or not torch.isfinite(first).all():
            return None
        if self._leaf[0].numel() > FEW and float((first - second).abs().max()) <= SAME * largest:
            return self._as_diagonal(first, largest)
        return self._as_matrix()

    def _as_diagonal(self, diagonal: Tensor, largest: float) -> DiagonalFactor | None:
        if float(diagonal.min()) < -self._noise * largest:
            return None
        rows = diagonal.clamp(min=0).reshape(len(diagonal), -1).double()
        return DiagonalFactor(diagonal=rows, shape=self._leaf.shape, weight=float(len(rows)))

    def _as_matrix(self) -> DenseFactor | None:
        samples, size = len(self._leaf), self._leaf[0].numel()
        if size > MOST_ENTRIES or 16 * samples * size**2 > MOST_BYTES:
            return None
        signs = self._signs((samples, 1), 2)  # entries between samples, if any, average out
        units = torch.eye(size, dtype=self._leaf.dtype, device=self._leaf.device)
        columns = [signs * self._product(signs * unit) for unit in units]
        hessian = torch.stack(columns, 2).double()
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        if bool((values < -self._noise * values.abs().amax().clamp(min=1e-300)).any()):
            return None
        matrix = (vectors * values.clamp(min=0).sqrt()[:, None]).flip(2)
        return DenseFactor(matrix=matrix, shape=self._leaf.shape, weight=float(samples))

    def _diagonal(self, seed: int) -> Tensor:
        """Return `v ⊙ H v` for random signs `v`: the diagonal, if nothing lies beside it."""
        signs = self._signs((len(self._leaf), self._leaf[0].numel()), seed)
        return signs * self._product(signs)

    def _signs(self, shape: tuple[int, int], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, shape, generator=generator, device="cpu")
        return (bits * 2 - 1).to(self._leaf)

    def _product(self, vectors: Tensor) -> Tensor:
        """Return `H v` for one vector per sample, `(N, D)`."""
        direction = vectors.reshape(self._gradient.shape)
        (product,) = torch.autograd.grad(self._gradient, self._leaf, direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(vectors) if product is None else product.reshape(len(vectors), -1)


def _check_finite(loss: Tensor) -> None:
    """Raise unless the loss of finite outputs is finite.

    Raises:
        NumericalError: It is not.
    """
    if not bool(torch.isfinite(loss)):
        raise NumericalError(
            f"`loss_fn` must return a finite number for each batch, got {loss.item()}. Look in it for a logarithm or "
            "root of 0 and for a mean over nothing, and in the targets for NaN."
        )


def _rows_of(factor: Curvature, rows: Tensor) -> Curvature:
    shape, weight = torch.Size((len(rows), *factor.shape[1:])), float(len(rows))
    if isinstance(factor, DiagonalFactor):
        return replace(factor, diagonal=factor.diagonal[rows], shape=shape, weight=weight)
    return replace(factor, matrix=factor.matrix[rows], shape=shape, weight=weight)
