"""Layers outside of the stack are refitted one at a time: in front of it before its blocks, behind it after them.

For each layer both models run over portions of the samples, up to this layer, and what is held are the sums of its
regression. So the head corrects what the blocks left, and memory does not grow with the samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.tensors import named_tensors
from hessprune.foundation.trees import sample_rows
from hessprune.layers.branches import Branch, find_branches
from hessprune.layers.calls import slow_attention
from hessprune.layers.least_squares import ridge_of
from hessprune.layers.recording import Recording, record
from hessprune.layers.regression import columns_of
from hessprune.layers.stack import Stack
from hessprune.layers.sums import Sums
from hessprune.operators.maps import Arguments, Convolution, LinearMap, SampleLayout
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples, judging, most_samples
from hessprune.surgery.refitting import Piece, Refitter, Scene, Student
from hessprune.surgery.teacher import Teacher, targets_for


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """Weights of a pruned model outside of its stack that a regression can fit, in the order of their first uses."""

    front: tuple[str, ...]
    """Those that run before the last block does; the first of them loses inputs."""
    behind: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    """All parameters and buffers outside of the stack, but tables that are looked up."""

    @classmethod
    def of(cls, student: nn.Module, plan: Plan, stack: Stack, inputs: Any) -> "Outside":
        """Return those of a model, from a run on two samples."""
        recording = record(student, inputs)
        inside = {id(value) for name in stack.names for value in student.get_submodule(name).parameters()}
        tensors = {
            name: value
            for name, value in named_tensors(student)
            if id(value) not in inside and not any(name.startswith(f"{block}.") for block in stack.names)
        }
        order = list(dict.fromkeys(use.weight for use in recording.uses))
        last = max((place for place, name in enumerate(order) if name not in tensors), default=-1)
        fit = [name for name in order if name in tensors and _is_regression(recording, name)]
        front = [name for name in fit if order.index(name) < last]
        reading = _losing(plan)
        first = next((place for place, name in enumerate(front) if name in reading), len(front))
        return cls(
            front=tuple(front[first:]),
            behind=tuple(name for name in fit if name not in front),
            tensors={name: value for name, value in tensors.items() if name not in recording.looked_up},
        )


def _losing(plan: Plan) -> set[str]:
    """Return the parameters that read units which the plan removes."""
    groups = (group for group in plan.groups if plan.removed.get(group.name))
    return {piece.param for group in groups for piece in group.slices_with_role("consumer")}


def _is_regression(recording: Recording, name: str) -> bool:
    """Return whether all uses of a weight are regressions that the layer may follow."""
    calls = [use.call for use in recording.uses if use.weight == name]
    turned = any(isinstance(call, Convolution) and call.transposed for call in calls)
    return name not in recording.looked_up | recording.unfit and not turned


@torch.no_grad()
def refit_layers(
    dense: nn.Module, student: nn.Module, plan: Plan, samples: Sequence[Samples], names: Sequence[str]
) -> None:
    """Refit layers of a student in place, one after another, on samples in portions.

    Each takes a run of both models up to the layer, and holds the sums of its regression, `8 K (K + O)` bytes twice.

    Args:
        dense: The teacher.
        student: The pruned model, which changes.
        plan: The plan between them.
        samples: For both models.
        names: Weights, in the order of their uses.
    """
    if not names:
        return
    recording, total = record(student, samples[0].inputs), sum(map(len, samples))
    refitter = Refitter(student, recording)
    with evaluation_mode(dense), evaluation_mode(student), slow_attention(), progress_bar("layers", len(names)) as bar:
        portions = [
            portion
            for part, judges in zip(samples, judging(samples), strict=True)
            for portion in _portions(part, judges, dense, student)
        ]
        for number, name in enumerate(names):
            bar.advance(0, f"layer {number + 1}/{len(names)} outside of the blocks")
            layer = _Layer(
                dense=dense, student=student, plan=plan, recording=recording, name=name, uses=recording.count(name)
            )
            sums = _Regression(refitter, name)
            for portion in portions:
                for piece in layer.pieces(portion, len(portion) / total):
                    sums.add(piece)
            sums.fit()
            bar.advance(1, f"layer {number + 1}/{len(names)} outside of the blocks")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Portion:
    """As many samples of a part as both models can run at a time, and the models' branches."""

    part: Samples
    rows: Tensor
    judges: Tensor
    dense_branches: Mapping[str, Branch]
    branches: Mapping[str, Branch]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def inputs(self) -> Any:
        """The inputs of the samples."""
        return sample_rows(self.part.inputs, self.rows)


def _portions(part: Samples, judges: Tensor, dense: nn.Module, student: nn.Module) -> Iterator[_Portion]:
    theirs, ours = find_branches(dense, part.inputs), find_branches(student, part.inputs)
    both = theirs.keys() & ours.keys()
    for rows in torch.arange(len(part), device="cpu").split(most_samples(dense, part.inputs)):
        yield _Portion(
            part=part,
            rows=rows,
            judges=judges[rows],
            dense_branches={name: theirs[name] for name in both},
            branches={name: ours[name] for name in both},
        )


class _EnoughError(Exception):
    """Ends a run behind the last use of a layer."""


class _Answers(Teacher):
    """Records the outputs of one layer."""

    def __init__(
        self,
        model: nn.Module,
        portion: _Portion,
        share: float,
        name: str,
        uses: int,
        layouts: Mapping[str, SampleLayout],
    ) -> None:
        branches = {name: portion.dense_branches[name]} if name in portion.dense_branches else {}
        super().__init__(model, portion.part.rows(portion.rows), branches, share, layouts)
        self._name, self._uses = name, uses

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        if name != self._name:
            return call.forward(*arguments)
        output = super().on_layer(name, call, arguments)
        if len(self.targets) == self._uses:
            raise _EnoughError
        return output


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A layer of two models."""

    dense: nn.Module
    student: nn.Module
    plan: Plan
    recording: Recording
    name: str
    uses: int

    def pieces(self, portion: _Portion, share: float) -> list[Piece]:
        """Return the rows of the layer's regression on some samples, one piece for each use."""
        inputs = portion.inputs
        teacher = _Answers(self.dense, portion, share, self.name, self.uses, self.recording.layouts)
        with suppress(_EnoughError), teacher:
            call_model(self.dense, inputs)
        scene = Scene(
            inputs=inputs,
            samples=len(portion),
            branches={self.name: portion.branches[self.name]} if self.name in portion.branches else {},
            targets=targets_for(teacher.targets, self.plan, self.dense, self.student),
            output=None,
            judges=portion.judges,
        )
        found: list[Piece] = []

        def collect(_: str, piece: Piece) -> None:
            found.append(piece)
            if len(found) == self.uses:
                raise _EnoughError

        with suppress(_EnoughError), Student(self.student, self.recording, scene, collect, every=True):
            call_model(self.student, inputs)
        return found


class _Regression:
    """Sums of a layer's regression over the pieces that come in."""

    def __init__(self, refitter: Refitter, name: str) -> None:
        self._refitter, self._name = refitter, name
        self._sums: dict[bool, Sums] = {}
        self._first: Piece | None = None
        self._kinds: set[Any] = set()

    def add(self, piece: Piece) -> None:
        """Add the rows of a piece."""
        self._first = self._first or replace(piece, inputs=piece.inputs[:0], goal=piece.goal[:0])
        self._kinds.add((piece.call.transposed, piece.inputs.shape[1:], piece.goal.shape[1:]))
        for judges, rows in ((True, piece.held_out), (False, ~piece.held_out)):
            more = Sums.of(piece.inputs[rows], piece.goal[rows])
            self._sums[judges] = self._sums[judges] + more if judges in self._sums else more

    def fit(self) -> None:
        """Give the layer the weights of least squares; one whose uses differ in form stays as it is."""
        first = self._first
        if first is None or len(self._kinds) > 1:
            return
        old = columns_of(first.call, first.weight) * first.scale
        shifts = self._refitter.takes_shift(self._name, first)
        self._refitter.take(self._name, first, ridge_of(self._sums[False], self._sums[True], old, with_shift=shifts))
