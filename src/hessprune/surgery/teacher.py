"""Answers of the dense layers at a random sample of positions, and the part that the pruned layers shall give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.layers.branches import Branch, StepMode
from hessprune.layers.regression import rows_of, samples_of_rows, word_rows
from hessprune.operators.maps import Arguments, LinearMap, SampleLayout
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples
from hessprune.surgery.implants.arrangement import origins
from hessprune.surgery.implants.module import parts_of

ROWS_PER_INPUT, MIN_ROWS, MAX_ROWS = 48, 8192, 32768
"""Sampled positions for each column of the regression, and the least and most positions of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The dense layer's output at sampled positions of one use, and the tensor that is added to it."""

    weight: str
    positions: Tensor  # (R,)
    samples: Tensor  # (R,): the sample of each position
    output: Tensor  # (R, O)
    other: Tensor | None  # (R, O)


class Teacher(StepMode):
    """Records every layer's output at random positions; of texts, at words."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        branches: Mapping[str, Branch],
        share: float,
        layouts: Mapping[str, SampleLayout],
    ) -> None:
        super().__init__(model, len(samples), branches, layouts)
        self._share, self._masks = share, samples.masks
        self.targets: list[Target] = []
        self._generator = torch.Generator().manual_seed(0)

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Record what a layer answers."""
        out = call.forward(*arguments)
        rows = rows_of(call, out)
        usual = max(MIN_ROWS, min(MAX_ROWS, ROWS_PER_INPUT * arguments[1][0].numel()))
        words = word_rows(call, out, self._masks)
        counted = torch.arange(len(rows), device=rows.device) if words is None else words.nonzero().squeeze(1)
        drawn = torch.randperm(len(counted), generator=self._generator, device="cpu")
        positions = counted[drawn[: max(1, int(self._share * usual))].sort().values.to(rows.device)]
        other = rows_of(call, self.take_other(name))[positions] if name in self.branches else None
        samples = samples_of_rows(call, out, self.samples)[positions]
        target = Target(weight=name, positions=positions, samples=samples, output=rows[positions], other=other)
        self.targets.append(target)
        return out


def targets_for(
    recorded: Sequence[Target], plan: Plan, dense: nn.Module, student: nn.Module
) -> dict[str, list[Target]]:
    """Return for each weight of the student its part of the dense outputs, one for each use."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters(remove_duplicate=False)}
    slices = (piece for group in plan.groups for piece in group.slices_with_role("producer"))
    axes = [(piece.param, piece.dim) for piece in slices if piece.param in shapes]  # of a part, its own
    rows = {name: kept for (name, _), kept in origins(plan, {(n, dim): shapes[n][dim] for n, dim in axes}).items()}
    sizes = {name: shapes[name][dim] for name, dim in axes}
    parts_by_weight = {name: [(name, rows.get(name))] for name in shapes}
    for layer, _, parts in parts_of(student, dense, plan):
        parts_by_weight[f"{layer}.weight"] = [(f"{part.name}.weight", part.rows) for part in parts]
    targets: dict[str, list[Target]] = {}
    for target in recorded:
        for name, kept in parts_by_weight[target.weight]:
            columns: Any = slice(None)
            if kept is not None and sizes[target.weight] == target.output.shape[1]:
                columns = kept.to(target.output.device)
            other = None if target.other is None else target.other[:, columns]
            part = replace(target, weight=name, output=target.output[:, columns], other=other)
            targets.setdefault(name, []).append(part)
    return targets
