"""A loss that the user gives: in closed form where it is known, as it is otherwise."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.losses import LossFn, as_cross_entropy, entropy_of, labels_for, loss_name, loss_weight
from hessprune.foundation.modules import logits_of
from hessprune.foundation.returned import number_on
from hessprune.objectives.any_loss import AnyLoss
from hessprune.objectives.closed_form import ClosedForm, SoftenedCrossEntropy, fitting, module_of, typed
from hessprune.objectives.objective import BatchLoss, Objective
from hessprune.objectives.outputs import Outputs


@dataclass(frozen=True, kw_only=True)
class GivenLoss(Objective):
    """A loss of the outputs and the targets.

    Args:
        loss_fn: `(output, targets) → mean loss of the batch`; None is cross-entropy.
        outputs: The output tensors; only a loss without a closed form needs them.
    """

    loss_fn: LossFn | None
    outputs: Outputs | None = None
    _seen: list[AnyLoss] = field(default_factory=list, compare=False, repr=False)
    """The first batch, which knows the kind of curvature that was used."""

    @property
    def closed(self) -> nn.Module | None:
        """The loss in closed form, or None."""
        return module_of(self.loss_fn)

    @property
    def takes_anything(self) -> bool:
        """True for a loss without a closed form."""
        return self.closed is None and as_cross_entropy(self.loss_fn) is None

    def facts(self) -> dict[str, Any]:
        """Return the loss, and how its curvature was measured."""
        facts: dict[str, Any] = {"loss": loss_name(self.loss_fn)}
        used = sorted({loss.curvature for loss in self._seen} - {""})
        return facts | {"curvature": ", ".join(used)} if used else facts

    def read(self, output: Any, samples: int, inputs: Any = None) -> Tensor:  # noqa: ARG002
        """Return the logits, or all outputs that a loss may read."""
        if self.closed is not None:
            return logits_of(output)
        assert self.outputs is not None
        return self.outputs.read(output, samples)

    def on(self, inputs: Any, targets: Any, samples: int) -> BatchLoss:  # noqa: ARG002
        """Return the loss of one batch."""
        closed = self.closed
        if closed is not None:
            return ClosedForm(closed, targets, samples)
        assert self.loss_fn is not None
        assert self.outputs is not None
        loss = AnyLoss(self.loss_fn, self.outputs, targets, samples)
        loss.is_first = not self._seen
        self._seen[1:] = [loss]
        return loss

    def judge(self, output: Any, dense_output: Any, inputs: Any, targets: Any, samples: int) -> tuple[float, float]:  # noqa: ARG002
        """Return the mean loss of an output, and the weight of the batch."""
        entropy = as_cross_entropy(self.loss_fn)
        if entropy is not None:
            logits = self.read(output, samples, inputs)
            targets = labels_for(logits, targets, ignore_index=entropy.ignore_index)
            weight = loss_weight(entropy, targets)
            return (float(entropy_of(logits, targets, entropy)), weight) if weight else (0.0, 0.0)
        assert self.loss_fn is not None
        if self.closed is not None:
            values = self.read(output, samples, inputs)
            return float(self.loss_fn(values, fitting(self.closed, values, targets))), float(samples)
        return number_on(self.loss_fn, output, targets, "loss_fn"), float(samples)

    def softened(self, temperature: float) -> "GivenLoss":
        """Return a cross-entropy at a temperature; any other loss as it is."""
        return replace(self, loss_fn=SoftenedCrossEntropy(self.closed, temperature)) if self.has_classes else self  # type: ignore[arg-type]

    @property
    def has_classes(self) -> bool:
        """True for a cross-entropy that is not softened yet."""
        return isinstance(self.closed, nn.CrossEntropyLoss) and not isinstance(self.closed, SoftenedCrossEntropy)

    def typed(self, device: torch.device, dtype: torch.dtype) -> "GivenLoss":
        """Return the objective with the tensors of its loss on a device."""
        return replace(self, loss_fn=typed(self.loss_fn, device, dtype))
