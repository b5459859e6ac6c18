r"""The dense model as its own teacher: how far outputs move, whatever the labels are.

An output of classes costs the divergence `KL(p_dense ‖ p)` at each position that counts, any other output the squared
error in units of its own standard deviation over the calibration data. Several outputs are averaged. At the dense
model the objective and its gradient are zero; its Hessian in the outputs is `diag(p) − p pᵀ`, or `2 / (D σ²)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.foundation.texts import by_name, tokens_of
from hessprune.foundation.trees import tensors_in
from hessprune.objectives.factors import DiagonalFactor, JoinedFactor, LogitFactor, SoftmaxFactor
from hessprune.objectives.masks import at_positions, counted_positions, drawn_positions
from hessprune.objectives.objective import BatchLoss, Objective
from hessprune.objectives.outputs import Outputs, joined, separated, targets_of

Rule = Literal["divergence", "squared error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One output tensor, and how two values of it are compared."""

    name: str
    rule: Rule
    share: float = 1.0
    """Its weight; the weights of all parts add up to 1."""
    axis: int = 1
    """The axis of classes, samples first."""
    deviation: float = 1.0
    """Standard deviation of its numbers over the calibration data."""
    positions: int | None = None
    """The number of positions of a text that count, where a vocabulary at all of them would take too much memory."""

    def drawn(self, inputs: Any, positions: Sequence[int]) -> Tensor:
        """Return which of positions `(N, T)` count, for inputs with their names."""
        return drawn_positions(inputs, positions, self.positions, encoder=self.is_encoder)

    @property
    def is_encoder(self) -> bool:
        """True for an output of the encoder, beside those of a decoder."""
        return self.name.startswith("encoder")

    def canonical(self, tensor: Tensor, inputs: Any = None) -> Tensor:
        """Return the tensor with classes along axis 1, if there are classes, at the positions that count."""
        if self.positions is not None:
            tensor = at_positions(tensor, self.drawn(inputs, tensor.shape[:2]))
        return tensor.movedim(self.axis, 1) if self.rule == "divergence" else tensor

    def fact(self) -> str:
        """Return the rule, the number of positions and the weight, for the provenance."""
        rule = self.rule if self.positions is None else f"{self.rule} at {self.positions} positions"
        return rule if self.share == 1 else f"{rule} × {self.share:.3g}"


@dataclass(frozen=True, kw_only=True)
class DenseOutputs(Objective):
    """The distance to the dense model's outputs."""

    outputs: Outputs
    parts: tuple[Part, ...]
    names: tuple[str, ...] = ()
    """Of the model's inputs, where they stand in a row: they tell which is a mask."""
    ignore_index: int = -100
    """The label of positions that do not count."""
    temperature: float = 1.0
    """Of the softmax in which divergences are seen."""

    compares = True

    def facts(self) -> dict[str, Any]:
        """Return the rule for each output."""
        return {"loss": "dense outputs", "outputs": {part.name: part.fact() for part in self.parts}}

    def read(self, output: Any, samples: int, inputs: Any = None) -> Tensor:
        """Return the values of all parts, classes along axis 1."""
        return joined(self.tensors(output, samples, inputs))

    def on(self, inputs: Any, targets: Any, samples: int) -> "DenseLoss":
        """Return the distance on one batch."""
        return DenseLoss(self, by_name(self.names, inputs), targets, samples)

    def judge(self, output: Any, dense_output: Any, inputs: Any, targets: Any, samples: int) -> tuple[float, float]:
        """Return the mean distance of an output, and the weight of the batch."""
        dense, loss = self.tensors(dense_output, samples, inputs), self.on(inputs, targets, samples)
        loss.shapes = [tensor.shape for tensor in dense]
        return float(loss.distance(joined(dense).double(), self.read(output, samples, inputs).double())), loss.weight()

    def softened(self, temperature: float) -> "DenseOutputs":
        """Return the objective with another temperature; the same one where nothing is a divergence."""
        return replace(self, temperature=temperature) if self.has_classes else self

    @property
    def has_classes(self) -> bool:
        """True if a part is a divergence."""
        return any(part.rule == "divergence" for part in self.parts)

    def tensors(self, output: Any, samples: int, inputs: Any = None) -> list[Tensor]:
        """Return the tensors of all parts, samples first."""
        tensors, named = self.outputs.parts(output, samples), by_name(self.names, inputs)
        return [part.canonical(tensor, named) for part, tensor in zip(self.parts, tensors, strict=True)]


class DenseLoss(BatchLoss):
    """The distance to the dense outputs on one batch.

    A single output of classes is averaged over positions, as cross-entropy is; otherwise each sample counts once.
    """

    compares = True

    def __init__(self, objective: DenseOutputs, inputs: Any, targets: Any, samples: int) -> None:
        self.objective, self.samples = objective, samples
        self.needs_outputs = len(objective.parts) > 1  # one part has the shape of the values
        self._inputs, self._targets = inputs, targets
        self._device = next(tensors_in(inputs), torch.zeros((), device="cpu")).device
        self._masks: list[Tensor] | None = None
        self.shapes: Sequence[torch.Size] = ()
        """Of the parts, samples first."""

    def see(self, outputs: Sequence[tuple[Any, int]], values: Tensor) -> None:
        """Learn the shapes of the outputs."""
        super().see(outputs, values)
        self.shapes = [tensor.shape for tensor in self.objective.tensors(*outputs[0])]

    def counted(self) -> Tensor:
        """Return the rows of the samples with a position that counts; all rows while no shape is known."""
        if not self.shapes:
            return torch.arange(self.samples, device=self._device)
        counts = torch.stack([mask.flatten(1).any(1) for mask in self.masks])
        return counts.any(0).nonzero().squeeze(1)

    def weight(self, rows: Tensor | None = None) -> float:
        """Return the number of positions that count, or of samples."""
        masks = self.masks if rows is None else [mask[rows] for mask in self.masks]
        if self._by_position:
            return float(masks[0].sum())
        return float(torch.stack([mask.flatten(1).any(1) for mask in masks]).any(0).sum())

    def factor(self, values: Tensor, rows: Tensor | None = None) -> LogitFactor:
        """Factor the Hessian at the dense outputs."""
        self._learn(values)
        tensors = self._split(values.detach().double())
        weights = self._weights(rows)
        divisor = self.weight(rows)
        factors = [
            self._factor(part, tensor, weight, divisor)
            for part, tensor, weight in zip(self.objective.parts, tensors, weights, strict=True)
        ]
        return factors[0] if len(factors) == 1 else JoinedFactor(parts=factors, weight=divisor)

    def loss(self, values: Tensor, rows: Tensor) -> Tensor:
        """Return the distance of some samples from their own values: zero, with the Hessian of the objective."""
        return self.distance(values.detach(), values, rows)

    def slope(self, values: Tensor) -> Tensor:
        """Return zeros: the dense model is at the minimum."""
        return torch.zeros_like(values)

    def rises(self, values: Tensor, rows: Tensor, shifts: Tensor) -> Tensor:
        """Return the distance under each shift."""
        dense = values.detach().double()
        return torch.stack([self.distance(dense, dense + shift.double(), rows) for shift in shifts]).cpu()

    def distance(self, dense: Tensor, values: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the mean distance between two readings of the same samples."""
        self._learn(values)
        total = torch.zeros((), dtype=values.dtype, device=values.device)
        pairs = zip(self._split(dense), self._split(values), self._weights(rows), strict=True)
        for part, (old, new, weight) in zip(self.objective.parts, pairs, strict=True):
            if part.rule == "divergence":
                dense_log, log = ((tensor / self.objective.temperature).log_softmax(1) for tensor in (old, new))
                each = F.kl_div(log, dense_log, reduction="none", log_target=True).sum(1)
            else:
                each = ((new - old) / part.deviation).square()
            total = total + (each.reshape(len(each), -1) * weight.to(each)).sum()
        return total / max(self.weight(rows), 1.0)

    @property
    def masks(self) -> list[Tensor]:
        """For each part the positions that count, `(N, P)` bool."""
        if self._masks is None:
            pairs = zip(self.objective.parts, self.shapes, strict=True)
            self._masks = [self._mask(part, shape) for part, shape in pairs]
        return self._masks

    def _mask(self, part: Part, shape: torch.Size) -> Tensor:
        """Return the mask of a part: over positions for classes, over numbers for others."""
        positions = (shape[0], *shape[2:]) if part.rule == "divergence" else tuple(shape)
        positions = (self.samples, *positions[1:])
        if part.positions is not None:
            tokens = tokens_of(self._inputs)
            assert tokens is not None, "positions are sampled where a model reads tokens"
            positions = (self.samples, tokens.shape[1])
        mask = counted_positions(
            self._inputs,
            targets_of(self._targets, part.name),
            positions,
            ignore_index=self.objective.ignore_index,
            encoder=part.is_encoder,
        )
        if part.positions is not None:
            mask = at_positions(mask, part.drawn(self._inputs, positions))
        return mask.reshape(self.samples, -1).to(self._device)

    def _learn(self, values: Tensor) -> None:
        """Take the shape of the only part from values."""
        if not self.shapes:
            self.shapes = [values.shape]

    @property
    def _by_position(self) -> bool:
        return len(self.objective.parts) == 1 and self.objective.parts[0].rule == "divergence"

    def _weights(self, rows: Tensor | None) -> list[Tensor]:
        """Return the weight of each position in a sum over samples, `(n, P)`."""
        masks = [(mask if rows is None else mask[rows]).double() for mask in self.masks]
        if self._by_position:
            return masks
        shares = [part.share for part in self.objective.parts]
        return [
            share * mask / mask.sum(1, keepdim=True).clamp(min=1) for share, mask in zip(shares, masks, strict=True)
        ]

    def _split(self, values: Tensor) -> list[Tensor]:
        return separated(values, self.shapes)

    def _factor(self, part: Part, tensor: Tensor, weight: Tensor, divisor: float) -> LogitFactor:
        if part.rule == "squared error":
            diagonal = (2 / part.deviation**2) * weight.to(tensor)
            return DiagonalFactor(diagonal=diagonal, shape=tensor.shape, weight=divisor)
        temperature = self.objective.temperature
        p = (tensor / temperature).reshape(*tensor.shape[:2], -1).softmax(1)
        p, order = p.sort(dim=1, descending=True)
        weight = weight.to(tensor) / temperature**2
        return SoftmaxFactor(probability=p, order=order, sample_weight=weight, shape=tensor.shape, weight=divisor)
