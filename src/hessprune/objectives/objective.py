"""An objective: what of a model's output counts, and the loss of a batch as a function of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import DataError
from hessprune.objectives.factors import LogitFactor


class BatchLoss(ABC):
    """The mean loss of one batch, as a function of the values `(N, *)` that an objective reads.

    Samples are meant by their rows in the batch. The values that a method takes are those of the samples `rows`.
    """

    samples: int
    """Number of samples in the batch."""
    compares: bool = False
    """True if the dense model's own outputs are the targets."""
    needs_outputs: bool = False
    """True if `see` must be called with the whole outputs of the batch before anything else."""

    seen: Tensor | None = None
    """The values of the batch, if the outputs were needed."""

    def see(self, outputs: Sequence[tuple[Any, int]], values: Tensor) -> None:  # noqa: ARG002 - for subclasses
        """Take the outputs of the batch, chunk by chunk with numbers of samples, and the values read from them."""
        self.seen = values.detach()

    @abstractmethod
    def counted(self) -> Tensor:
        """Return the rows of the samples with weight in the loss, as far as that is known without values."""

    @abstractmethod
    def weight(self, rows: Tensor | None = None) -> float:
        """Return the weight of some samples, or of all, in the divisor of a mean over several batches."""

    @abstractmethod
    def factor(self, values: Tensor, rows: Tensor | None = None) -> LogitFactor:
        """Factor the Hessian of each sample's loss in its values, in float64; all samples where `rows` is None."""

    @abstractmethod
    def loss(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss of some samples of which one at least has weight, differentiable in the values."""

    def relevance(self, values: Tensor) -> Tensor | None:  # noqa: ARG002 - for subclasses
        """Return what a sample may contribute to products with the Hessian, `(N,)`; None if that is unknown."""
        return None

    def slope(self, values: Tensor) -> Tensor:
        """Return the gradient of the mean loss of the whole batch in its values."""
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            rows = torch.arange(self.samples, device=leaf.device)
            return torch.autograd.grad(self.loss(leaf, rows), leaf)[0]

    def rises(self, values: Tensor, rows: Tensor, shifts: Tensor) -> Tensor:
        """Return the rise of the mean loss of some samples under each shift, less the gradient's part, `(levels,)`."""
        with torch.enable_grad():
            leaf = values.detach().requires_grad_()
            loss = self.loss(leaf, rows)
            slope = torch.autograd.grad(loss, leaf)[0]
        moved = (shift.to(leaf.dtype) for shift in shifts)  # one at a time: a level takes as much memory as the values
        with torch.no_grad():
            rises = [self.loss(values + shift, rows) - loss.detach() - (slope * shift).sum() for shift in moved]
        return torch.stack(rises).double().cpu()


class Objective(ABC):
    """What a pruned model is judged by."""

    compares = False
    """True if the dense model's outputs are the targets."""

    @property
    def takes_anything(self) -> bool:
        """True if the targets may be anything: a row of them need not be that of a sample."""
        return False

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return JSON values for the provenance."""

    def typed(self, device: torch.device, dtype: torch.dtype) -> "Objective":  # noqa: ARG002 - for subclasses
        """Return the objective with its own tensors, if any, on a device."""
        return self

    @property
    def has_classes(self) -> bool:
        """True if `softened` gives another objective."""
        return False

    def softened(self, temperature: float) -> "Objective":  # noqa: ARG002 - for subclasses
        """Return the objective in which the softmax has a temperature, if there is a softmax."""
        return self

    @abstractmethod
    def read(self, output: Any, samples: int, inputs: Any = None) -> Tensor:
        """Return the values that count, `(N, *)`, differentiable in the output; masks among the inputs may choose."""

    @abstractmethod
    def on(self, inputs: Any, targets: Any, samples: int) -> BatchLoss:
        """Return the loss of one batch.

        Raises:
            DataError: The targets do not fit.
        """

    @abstractmethod
    def judge(self, output: Any, dense_output: Any, inputs: Any, targets: Any, samples: int) -> tuple[float, float]:
        """Return the mean loss of a model's output on one batch, and the weight of the batch.

        Args:
            output: Of the model that is judged.
            dense_output: Of the dense model; None unless the objective compares.
            inputs: Of the batch; they may hold masks.
            targets: Of the batch, or None.
            samples: Number of samples.
        """


def check_weight(weight: float) -> None:
    """Raise unless the samples of a data set have weight in the loss.

    Raises:
        DataError: All labels are ignored, or of classes of weight 0, or all positions are masked.
    """
    if not weight:
        raise DataError("`batches` must hold at least one label that counts, got only ignored ones. Check the targets.")
