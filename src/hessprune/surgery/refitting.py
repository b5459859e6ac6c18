"""Refit the layers of a pruned model, in forward order, to the outputs of the dense layers.

A layer whose output is added to a residual stream reproduces the dense sum, and thereby corrects earlier errors of the
stream. Each model runs once over the samples, and each layer is fitted at a random sample of positions. Samples of
several shapes run in lockstep.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.state import evaluation_mode
from hessprune.layers.branches import Branch, StepMode, find_branches
from hessprune.layers.calls import slow_attention
from hessprune.layers.least_squares import Fit, ridge
from hessprune.layers.recording import Recording, record
from hessprune.layers.regression import columns_of, design, rows_of, weight_from
from hessprune.operators.maps import Arguments, Convolution, LinearMap, SampleLayout
from hessprune.planning.plan import Plan
from hessprune.surgery.calibration import Samples, judging
from hessprune.surgery.lockstep import Pause, in_lockstep
from hessprune.surgery.teacher import Target, Teacher, targets_for

NEGLIGIBLE = 1e-6
"""Share of the largest BatchNorm factor below which a channel's output does not matter."""


@torch.no_grad()
def refitted(
    dense: nn.Module, pruned: nn.Module, plan: Plan, samples: Sequence[Samples], share: float = 1.0
) -> nn.Module:
    """Return a copy of `pruned`, refitted on samples, at a share of the usual number of positions."""
    student = copy.deepcopy(pruned)
    refit_in_place(dense, student, plan, samples, [part.inputs for part in samples], share)
    return student


@torch.no_grad()
def refit_in_place(
    dense: nn.Module,
    student: nn.Module,
    plan: Plan,
    samples: Sequence[Samples],
    dense_inputs: Sequence[Any],
    share: float = 1.0,
) -> list[tuple[Any, Any]]:
    """Refit a student on samples whose inputs are its own; return the outputs of both models for each part.

    Args:
        dense: The teacher.
        student: The pruned model, which changes.
        plan: The plan between them, or between models of which they are parts.
        samples: With the inputs of the student.
        dense_inputs: The inputs of the teacher for the same samples: others where the two are parts of models.
        share: Of the usual number of positions.
    """
    recording, total = record(student, samples[0].inputs), sum(map(len, samples))
    with evaluation_mode(dense), evaluation_mode(student), slow_attention():
        scenes = [
            _scene(dense, student, plan, part, own, share * len(part) / total, recording.layouts, judges)
            for part, own, judges in zip(samples, dense_inputs, judging(samples), strict=True)
        ]
        later = [_listen(student, recording, scene) for scene in scenes]
        refitter = Refitter(student, recording)
        answers: list[Any] = [None] * len(scenes)
        with progress_bar("least squares", len(scenes[0].targets)) as bar:

            def meet(name: str, brought: list[Piece]) -> None:
                refitter.fit(name, [*brought, *(piece for heard in later for piece in heard.get(name, ()))])
                bar.advance()

            in_lockstep([_run(student, recording, scene, answers, n) for n, scene in enumerate(scenes)], meet)
    return [(scene.output, answer) for scene, answer in zip(scenes, answers, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Samples, the branches of the student on them, and what the dense model and its layers answered."""

    inputs: Any
    samples: int
    branches: Mapping[str, Branch]
    targets: Mapping[str, Sequence[Target]]
    output: Any
    judges: Tensor
    """The samples that judge, `(N,)` bool."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Rows of one layer's regression: inputs, goals, the factors from outputs to goals, and who judges."""

    call: LinearMap
    weight: Tensor
    bias: Tensor | None
    inputs: Tensor  # (R, g, K)
    goal: Tensor  # (R, g, O)
    scale: Tensor  # (g, 1, O)
    held_out: Tensor  # (R,)


def _scene(
    dense: nn.Module,
    student: nn.Module,
    plan: Plan,
    samples: Samples,
    dense_inputs: Any,
    share: float,
    layouts: Mapping[str, SampleLayout],
    judges: Tensor,
) -> Scene:
    """Run the dense model on some samples."""
    theirs, ours = find_branches(dense, dense_inputs), find_branches(student, samples.inputs)
    both = theirs.keys() & ours.keys()
    teacher = Teacher(dense, samples, {name: theirs[name] for name in both}, share, layouts)
    with teacher:
        output = call_model(dense, dense_inputs)
    return Scene(
        inputs=samples.inputs,
        samples=len(samples),
        branches={name: ours[name] for name in both},
        targets=targets_for(teacher.targets, plan, dense, student),
        output=output,
        judges=judges,
    )


def _run(student: nn.Module, recording: Recording, scene: Scene, answers: list[Any], number: int) -> Any:
    """Return a run of the student that pauses in front of each layer to be refitted, and then notes its answer."""

    def run(pause: Pause) -> None:
        with torch.no_grad(), Student(student, recording, scene, pause):  # both belong to a thread
            answers[number] = call_model(student, scene.inputs)

    return run


def _listen(student: nn.Module, recording: Recording, scene: Scene) -> dict[str, list[Piece]]:
    """Return the rows of all uses but the first of layers that are used several times, before any refit."""
    heard: dict[str, list[Piece]] = {}
    if any(len(uses) > 1 for uses in scene.targets.values()):
        with Student(
            student, recording, scene, lambda name, piece: heard.setdefault(name, []).append(piece), every=True
        ):
            call_model(student, scene.inputs)
    return {name: pieces[1:] for name, pieces in heard.items()}


class Student(StepMode):
    """Pauses in front of each layer, so that later layers receive refitted outputs.

    Args:
        model: The student.
        recording: Of a run of it.
        scene: The samples and the dense outputs.
        pause: Receives the name of the layer and the rows of its regression.
        every: Pause at every use of a layer, not only at the first.
    """

    def __init__(
        self, model: nn.Module, recording: Recording, scene: Scene, pause: Pause, *, every: bool = False
    ) -> None:
        super().__init__(model, scene.samples, scene.branches, recording.layouts)
        self._targets, self._pause, self._every, self._judges = scene.targets, pause, every, scene.judges
        self._uses: Counter[str] = Counter()
        # Of a looked-up table other rows than those of outputs would change; experts may receive other rows now.
        self._stays = recording.looked_up | recording.unfit

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Pause in front of a layer, then run it."""
        number, targets = self._uses[name], self._targets.get(name, ())
        self._uses[name] += 1
        is_regression = not (isinstance(call, Convolution) and call.transposed)
        is_regression = is_regression and name not in self._stays
        if number < len(targets) and is_regression and (self._every or not number):
            self._pause(name, self._piece(name, call, arguments, targets[number]))
        return call.forward(*arguments)

    def _piece(self, name: str, call: LinearMap, arguments: Arguments, target: Target) -> Piece:
        """Return the rows of a layer's regression on the dense output, or on the dense sum in front of an addition."""
        x, weight, bias = arguments
        groups = columns_of(call, weight).shape[0]
        scale, missing = self._sum(name, call, target)
        output = target.output if bias is None else target.output - bias
        return Piece(
            call=call,
            weight=weight,
            bias=bias,
            inputs=design(call, x, weight, target.positions),
            goal=(output * scale + missing).unflatten(1, (groups, -1)),
            scale=scale.view(groups, 1, -1),
            held_out=self._judges.to(target.samples.device)[target.samples],
        )

    def _sum(self, name: str, call: LinearMap, target: Target) -> tuple[Tensor, Tensor | float]:
        """Return the factors from a layer's output to a sum, `(O,)`, and the error of the other summand, `(R, O)`."""
        ones = target.output.new_ones(target.output.shape[1])
        if target.other is None:
            return ones, 0.0
        missing = target.other - rows_of(call, self.take_other(name))[target.positions]
        scale = self.branches[name].scale
        if scale is None:
            return ones, missing
        return torch.where(scale.abs() > NEGLIGIBLE * scale.abs().max(), scale, ones), missing


class Refitter:
    """Gives layers their new weights, and the constant to the bias or to the mean of a BatchNorm."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        means = {id(buffer): buffer for buffer in model.buffers()}
        self._means = {weight: means[mean][at:] for weight, (mean, at) in recording.absorbing.items()}

    def fit(self, name: str, pieces: Sequence[Piece]) -> None:
        """Fit a layer to the rows of all pieces; a weight that is also used transposed stays as it is."""
        first = pieces[0]
        if len({(piece.call.transposed, piece.inputs.shape[1:], piece.goal.shape[1:]) for piece in pieces}) > 1:
            return
        fit = ridge(
            torch.cat([piece.inputs for piece in pieces]),
            torch.cat([piece.goal for piece in pieces]),
            columns_of(first.call, first.weight) * first.scale,
            held_out=torch.cat([piece.held_out for piece in pieces]),
            with_shift=self.takes_shift(name, first),
        )
        self.take(name, first, fit)

    def takes_shift(self, name: str, piece: Piece) -> bool:
        """Return whether something takes the constant of a layer's fit."""
        return piece.bias is not None or name in self._means

    def take(self, name: str, piece: Piece, fit: Fit) -> None:
        """Give a layer what was fitted."""
        weight, bias, mean = piece.weight, piece.bias, self._means.get(name)
        weight.copy_(weight_from(piece.call, fit.weight / piece.scale, weight))
        shift = (fit.shift / piece.scale.squeeze(1)).flatten()
        if bias is not None:
            bias += shift.to(bias.dtype)
        elif mean is not None:
            mean[: shift.numel()] -= shift.to(mean.dtype)
