"""Compensation block by block: of a stack of blocks, one at a time is fitted and held with its inputs.

The inputs of a block are those of the pruned and refitted blocks before it, so that each corrects what they left. Both
models advance together: a block of the dense one answers, a block of the pruned one is fitted, and their outputs are
the inputs of the next. Layers outside of the stack are refitted by `outside`: those in front of it before, those behind
it afterwards.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.arrival import arrived
from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches
from hessprune.foundation.modules import call_model
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import sample_rows
from hessprune.layers.calls import slow_attention
from hessprune.layers.chains import find_stack
from hessprune.layers.recording import record
from hessprune.layers.stack import Reading, Stack, Stage
from hessprune.objectives.choice import Chosen, choose_objective
from hessprune.objectives.judging import mean_losses, splits
from hessprune.planning.plan import Plan
from hessprune.surgery.block_files import BlockFiles, tensors_of
from hessprune.surgery.calibration import Samples, gather, most_samples, samples_in_memory
from hessprune.surgery.compensation import MIN_SAMPLES, held_out, left_out
from hessprune.surgery.fits import check_pair
from hessprune.surgery.outside import Outside, refit_layers
from hessprune.surgery.refitting import refit_in_place


@torch.inference_mode(False)
def compensate_by_block(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    batches: Any,
    *,
    loss_fn: Any = None,
    outputs: Chosen = None,
    folder: Path | None = None,
) -> nn.Module:
    """Refit a pruned model's blocks one after another, if that lowers the loss on held-out samples.

    As `compensate` does, but within a block at a time: it holds the dense outputs of one block's layers instead of all,
    and the samples for which one block's activations take 2 GB instead of the whole model's. Four fifths of the samples
    fit, once, and the last fifth judges.

    Args:
        dense: The model the plan was made for.
        pruned: The model from `apply_plan`; both models are left untouched.
        plan: The plan between them, without implants.
        batches: Calibration data.
        loss_fn: The loss on held-out samples; the distance to the dense model's outputs if None.
        outputs: Names of the outputs that are compared, or weights by name; all of them if None.
        folder: Where each fitted block is kept; a killed run continues behind the last one.

    Returns:
        A new model; an equal copy of `pruned` if there are fewer than ten samples, or if the loss does not fall.

    Raises:
        ArgumentError: `plan` was made for another model than `dense`, or gives another one than `pruned`.
        DataError: `batches` cannot be read twice or is empty.
        UnsupportedModelError: The model is no stack of blocks.
    """
    dense, pruned = arrived(dense), arrived(pruned)
    check_pair(dense, pruned, plan)
    batches = Rereadable.of(batches, dense)
    check_batches(batches)
    objective = choose_objective(dense, batches, loss_fn, outputs=outputs)
    stack, samples = _stacked(dense, pruned, batches, partial(splits, objective, dense))
    if sum(map(len, samples)) < MIN_SAMPLES:
        return copy.deepcopy(pruned)
    test = held_out(samples)
    fitting = [part.only(~test) for part in samples if not bool(test[part.places].all())]
    if not fitting:
        return copy.deepcopy(pruned)
    fitted = refitted_by_block(dense, pruned, plan, fitting, stack=stack, folder=folder)
    judging = [pair for part in left_out(samples, test) for pair in _in_portions(part, pruned)]
    before, after = mean_losses(objective, dense, [pruned, fitted], judging)
    return fitted if after < before else copy.deepcopy(pruned)


def refit_by_block(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Return a refitted copy of `pruned`, with no judgement on held-out samples; for models that are only measured."""
    stack, samples = _stacked(dense, pruned, Rereadable.of(batches, dense))
    return refitted_by_block(dense, pruned, plan, samples, stack=stack)


def _stacked(
    dense: nn.Module, pruned: nn.Module, batches: Rereadable, cuts: Callable[[Any, Any], bool] | None = None
) -> tuple[Stack, list[Samples]]:
    """Return the stack, and the calibration samples that a block can hold."""
    stack = find_stack(dense, next(iter(batches))[0])
    return stack, gather(batches, pruned, lambda model, inputs: _most_samples(stack, model, inputs), cuts)


def _most_samples(stack: Stack, model: nn.Module, inputs: Any) -> int:
    """Return the number of samples that the largest block can hold."""
    hidden, readings = stack.read(model, sample_rows(inputs, torch.tensor([0, -1], device="cpu")))
    most = []
    with evaluation_mode(model), torch.no_grad():
        for stage, reading in zip(stack.stages(model), readings, strict=True):
            most.append(samples_in_memory(record(stage, (hidden, reading))))
            hidden = call_model(stage, (hidden, reading))
    return min(most)


def _in_portions(part: Samples, model: nn.Module) -> list[tuple[Any, Any]]:
    """Return inputs and targets of as many samples as the whole model can hold at a time."""
    size = most_samples(model, part.inputs) if part.can_be_split else len(part)
    portions = (part.rows(rows) for rows in torch.arange(len(part), device="cpu").split(size))
    return [(portion.inputs, portion.targets) for portion in portions]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Advance:
    """Samples on their way through the stack: what the next block of each model reads."""

    samples: Samples
    dense: Tensor
    pruned: Tensor
    dense_readings: Sequence[Reading]
    pruned_readings: Sequence[Reading]

    @classmethod
    def start(cls, stack: Stack, dense: nn.Module, pruned: nn.Module, samples: Samples) -> "_Advance":
        """Run what stands in front of the stack."""
        theirs, ours = stack.read(dense, samples.inputs), stack.read(pruned, samples.inputs)
        return cls(samples=samples, dense=theirs[0], pruned=ours[0], dense_readings=theirs[1], pruned_readings=ours[1])

    def inputs(self, block: int) -> tuple[tuple[Tensor, Reading], tuple[Tensor, Reading]]:
        """Return the inputs of a block of the dense model, and of the pruned one."""
        return (self.dense, self.dense_readings[block]), (self.pruned, self.pruned_readings[block])

    def to(self, outputs: tuple[Tensor, Tensor]) -> "_Advance":
        """Return the samples in front of the next block."""
        return replace(self, dense=outputs[0], pruned=outputs[1])


@torch.no_grad()
def refitted_by_block(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    samples: Sequence[Samples],
    *,
    stack: Stack | None = None,
    folder: Path | None = None,
) -> nn.Module:
    """Return a copy of `pruned` whose blocks are refitted on samples, one after another, and the layers around them.

    Each sample's two residual streams are held, and the activations of one block for all samples.
    """
    stack = stack or find_stack(dense, samples[0].inputs)
    student = copy.deepcopy(pruned)
    files = BlockFiles.of(folder, dense, pruned, plan, samples)
    outside = Outside.of(student, plan, stack, samples[0].inputs)

    def refit_around(part: str, names: Sequence[str]) -> None:
        if names and not files.restore(part, outside.tensors):
            refit_layers(dense, student, plan, samples, names)
            files.keep(part, outside.tensors)

    refit_around("layers-in-front", outside.front)
    stages = [*zip(stack.stages(dense), stack.stages(student), strict=True)]
    ways = [_Advance.start(stack, dense, student, part) for part in samples]
    with progress_bar("blocks", len(stages)) as bar:
        for number, (teacher, stage) in enumerate(stages):
            bar.advance(0, f"block {number + 1}/{len(stages)}")
            file = f"block-{number:03d}"
            outputs = _run(teacher, stage, ways, number) if files.restore(file, tensors_of(stage)) else None
            if outputs is None:
                outputs = _fit(teacher, stage, plan, ways, number)
                files.keep(file, tensors_of(stage))
            ways = [way.to(pair) for way, pair in zip(ways, outputs, strict=True)]
            bar.advance(1, f"block {number + 1}/{len(stages)}")
    del ways
    refit_around("layers-behind", outside.behind)
    return student


def _fit(
    teacher: Stage, stage: Stage, plan: Plan, ways: Sequence[_Advance], number: int
) -> list[tuple[Tensor, Tensor]]:
    """Refit a block in place; return the outputs of both."""
    pairs = [way.inputs(number) for way in ways]
    own = [replace(way.samples, inputs=ours) for way, (_, ours) in zip(ways, pairs, strict=True)]
    return refit_in_place(teacher, stage, plan, own, [theirs for theirs, _ in pairs])


def _run(teacher: Stage, stage: Stage, ways: Sequence[_Advance], number: int) -> list[tuple[Tensor, Tensor]]:
    """Return the outputs of both blocks."""
    pairs = [way.inputs(number) for way in ways]
    with evaluation_mode(teacher), evaluation_mode(stage), slow_attention():
        return [(call_model(teacher, theirs), call_model(stage, ours)) for theirs, ours in pairs]
