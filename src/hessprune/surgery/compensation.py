"""Compensation: least squares adapts the remaining weights to the removal of units, without training.

Each layer of the pruned model is refitted in forward order: on its inputs in the pruned model it then reproduces the
dense layer's output. A layer whose output is added to a residual stream reproduces the dense sum, and thereby corrects
earlier errors of the stream. Each model runs once over the calibration samples, and each layer is fitted at a random
sample of positions.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.batches import Rereadable
from hessprune.foundation.checks import check_batches
from hessprune.foundation.modules import call_model, device_of, logits_of
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import join_inputs, leading_size, sample_rows, to_device
from hessprune.layers.branches import Branch, StepMode, find_branches
from hessprune.layers.least_squares import ridge
from hessprune.layers.recording import Recording, record, slow_attention
from hessprune.layers.regression import columns_of, design, rows_of, weight_from
from hessprune.operators.maps import Arguments, Convolution, LinearMap
from hessprune.planning.plan import Plan
from hessprune.surgery.fits import check_pair
from hessprune.surgery.implants.arrangement import origins
from hessprune.surgery.implants.module import parts_of

ROWS_PER_INPUT, MIN_ROWS, MAX_ROWS = 48, 8192, 32768
"""Sampled positions for each column of the regression, and the least and most positions of a layer."""
TRIAL_ROWS = 0.25
"""Share of these positions in the trial on four fifths of the samples."""
MIN_SAMPLES = 10
"""Fewest samples: fewer cannot be split into those that fit and those that judge."""
MEMORY = 2 << 30
"""Bytes of activations that one forward pass may hold; calibration samples beyond that are not read."""
NEGLIGIBLE = 1e-6
"""Share of the largest BatchNorm factor below which a channel's output does not matter."""
LIVE = 4
"""Memory of a forward pass, in multiples of the largest input and output of a layer."""


def compensate(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any, *, loss_fn: Any = None) -> nn.Module:
    """Refit a pruned model's layers to the dense layers' outputs, if that lowers the loss on held-out samples.

    For each convolution or linear layer in forward order, `min_W ‖Y − X W‖² + λ ‖W − W₀‖²`, where `X` are the layer's
    inputs in the pruned model, whose earlier layers are refitted already, and `Y` the dense layer's outputs. If `Y` is
    added to an earlier tensor `R`, scaled by `s = γ / σ` of a BatchNorm in between, `s X W` is fitted to
    `s Y + R − R'`, with the pruned model's `R'`. `λ` is chosen on held-out samples. The constant goes into the bias, or
    into the BatchNorm behind the layer. Normal equations in float64.

    Args:
        dense: The model the plan was made for.
        pruned: The model from `apply_plan`; both models are left untouched.
        plan: The plan between them.
        batches: Calibration data, a re-iterable of `(inputs, targets)`.
        loss_fn: The loss on held-out samples; cross-entropy if None.

    Returns:
        A new model, refitted on all samples; an equal copy of `pruned` if there are fewer than ten samples, or if a
        refit on four fifths of them does not lower the loss on the last fifth.

    Raises:
        ArgumentError: `plan` was made for another model than `dense`, or gives another one than `pruned`.
        DataError: `batches` cannot be read twice or is empty.

    Example:
        >>> import torch, hessprune as hp
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, batches = torch.zeros(1, 4), [(torch.randn(64, 4), torch.arange(64) % 2)]
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(8.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(macs=0.5), example_inputs=x)
        >>> hp.compensate(net, hp.apply_plan(net, plan), plan, batches)[2].in_features
        4
    """
    check_pair(dense, pruned, plan)
    batches = Rereadable.of(batches)
    check_batches(batches)
    inputs, targets = _gather(batches, pruned)
    if len(targets) < MIN_SAMPLES:
        return copy.deepcopy(pruned)
    test = torch.arange(len(targets)) % 5 == 0
    loss_fn = loss_fn or F.cross_entropy
    trial = _refitted(dense, pruned, plan, sample_rows(inputs, (~test).nonzero().squeeze(1)), TRIAL_ROWS)
    held_out = sample_rows(inputs, test.nonzero().squeeze(1)), targets[test]
    if _loss(trial, *held_out, loss_fn) < _loss(pruned, *held_out, loss_fn):
        return _refitted(dense, pruned, plan, inputs)
    return copy.deepcopy(pruned)


def _gather(batches: Any, model: nn.Module) -> tuple[Any, Tensor]:
    """Read calibration samples until memory is full, and join them into one batch."""
    inputs, targets, samples, limit, device = [], [], 0, 0, device_of(model)
    for batch, labels in Rereadable.of(batches):
        limit = limit or _most_samples(model, to_device(batch, device))
        inputs.append(batch)
        targets.append(labels)
        samples += len(labels)
        if samples >= limit:
            break
    rows = torch.arange(min(samples, limit))
    return to_device(sample_rows(join_inputs(inputs), rows), device), torch.cat(targets)[rows].to(device)


def _most_samples(model: nn.Module, inputs: Any) -> int:
    """Return the number of samples that one forward pass can hold, from a run on two samples."""
    uses = record(model, inputs).uses
    largest = max(math.prod(use.input_shape) + math.prod(use.output_shape) for use in uses) // 2
    return max(2, MEMORY // (4 * LIVE * largest))


@torch.no_grad()
def _loss(model: nn.Module, inputs: Any, targets: Tensor, loss_fn: Any) -> float:
    with evaluation_mode(model):
        return float(loss_fn(logits_of(call_model(model, inputs)), targets))


def refit(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Return a refitted copy of `pruned`, with no trial on held-out samples; for models that are only measured."""
    return _refitted(dense, pruned, plan, _gather(batches, pruned)[0])


@torch.no_grad()
def _refitted(dense: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any, share: float = 1.0) -> nn.Module:
    """Return a copy of `pruned`, refitted on one batch of inputs, at a share of the usual number of positions."""
    student = copy.deepcopy(pruned)
    recording, samples = record(student, inputs), leading_size(inputs)
    with evaluation_mode(dense), evaluation_mode(student), slow_attention():
        theirs, ours = find_branches(dense, inputs), find_branches(student, inputs)
        both = theirs.keys() & ours.keys()
        teacher = _Teacher(dense, samples, {name: theirs[name] for name in both}, share)
        with teacher:
            call_model(dense, inputs)
        mode = _Student(student, samples, recording, {name: ours[name] for name in both})
        targets = _targets(teacher.targets, plan, dense, student)
        with progress_bar("least squares", len(teacher.targets)) as bar:
            mode.follow(targets, bar.advance)
            with mode:
                call_model(student, inputs)
    return student


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """The dense layer's output at sampled positions, and the tensor that is added to it."""

    weight: str
    positions: Tensor  # (R,)
    output: Tensor  # (R, O)
    other: Tensor | None  # (R, O)


class _Teacher(StepMode):
    """Records every layer's output at random positions."""

    def __init__(self, model: nn.Module, samples: int, branches: Mapping[str, Branch], share: float) -> None:
        super().__init__(model, samples, branches)
        self._share = share
        self.targets: list[_Target] = []
        self._generator = torch.Generator().manual_seed(0)

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        out = call.forward(*arguments)
        rows = rows_of(call, out)
        usual = max(MIN_ROWS, min(MAX_ROWS, ROWS_PER_INPUT * arguments[1][0].numel()))
        count = min(len(rows), int(self._share * usual))
        positions = torch.randperm(len(rows), generator=self._generator)[:count].sort().values.to(rows.device)
        other = rows_of(call, self.take_other(name))[positions] if name in self.branches else None
        self.targets.append(_Target(weight=name, positions=positions, output=rows[positions], other=other))
        return out


class _Student(StepMode):
    """Refits each layer just before it runs, so that later layers receive the refitted outputs."""

    def __init__(self, model: nn.Module, samples: int, recording: Recording, branches: Mapping[str, Branch]) -> None:
        super().__init__(model, samples, branches, recording.layouts)
        means = {id(buffer): buffer for buffer in model.buffers()}
        self._means = {weight: means[mean][at:] for weight, (mean, at) in recording.absorbing.items()}
        self._once = {use.weight for use in recording.uses if recording.count(use.weight) == 1}

    def follow(self, targets: Mapping[str, _Target], advance: Any) -> None:
        """Set the targets by weight, and the function that reports progress."""
        self._targets, self._advance = targets, advance

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        target = self._targets.get(name)
        if target and name in self._once and not (isinstance(call, Convolution) and call.transposed):
            self._refit(name, call, arguments, target)
        self._advance()
        return call.forward(*arguments)

    def _refit(self, name: str, call: LinearMap, arguments: Arguments, target: _Target) -> None:
        """Fit a layer to the dense layer's output, or to the dense sum in front of an addition."""
        x, weight, bias = arguments
        inputs, mean = design(call, x, weight, target.positions), self._means.get(name)
        old = columns_of(call, weight)
        scale, missing = self._sum(name, call, target)
        output = target.output if bias is None else target.output - bias
        goal, unit = (output * scale + missing).unflatten(1, (old.shape[0], -1)), scale.view(old.shape[0], 1, -1)
        rows_per_sample = len(rows_of(call, call.forward(x[:1], weight, None))) * x.shape[0] // self.samples
        held_out = (target.positions // max(rows_per_sample, 1)) % 5 == 0
        fit = ridge(inputs, goal, old * unit, held_out=held_out, with_shift=bias is not None or mean is not None)
        weight.copy_(weight_from(call, fit.weight / unit, weight))
        shift = (fit.shift / unit.squeeze(1)).flatten()
        if bias is not None:
            bias += shift.to(bias.dtype)
        elif mean is not None:
            mean[: shift.numel()] -= shift.to(mean.dtype)

    def _sum(self, name: str, call: LinearMap, target: _Target) -> tuple[Tensor, Tensor | float]:
        """Return the factors from a layer's output to a sum, `(O,)`, and the error of the other summand, `(R, O)`."""
        ones = target.output.new_ones(target.output.shape[1])
        if target.other is None:
            return ones, 0.0
        missing = target.other - rows_of(call, self.take_other(name))[target.positions]
        scale = self.branches[name].scale
        if scale is None:
            return ones, missing
        return torch.where(scale.abs() > NEGLIGIBLE * scale.abs().max(), scale, ones), missing


def _targets(recorded: list[_Target], plan: Plan, dense: nn.Module, student: nn.Module) -> dict[str, _Target]:
    """Return for each weight of the student its part of the dense outputs, of the last use if there are several."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters(remove_duplicate=False)}
    axes = [(p.param, p.dim) for group in plan.groups for p in group.slices_with_role("producer")]
    rows = {name: kept for (name, _), kept in origins(plan, {(n, dim): shapes[n][dim] for n, dim in axes}).items()}
    sizes = {name: shapes[name][dim] for name, dim in axes}
    parts_by_weight = {name: [(name, rows.get(name))] for name in shapes}
    for layer, _, parts in parts_of(student, dense, plan):
        parts_by_weight[f"{layer}.weight"] = [(f"{part.name}.weight", part.rows) for part in parts]
    targets = {}
    for target in recorded:
        for name, kept in parts_by_weight[target.weight]:
            columns = slice(None)
            if kept is not None and sizes[target.weight] == target.output.shape[1]:
                columns = kept.to(target.output.device)
            targets[name] = _Target(
                weight=name,
                positions=target.positions,
                output=target.output[:, columns],
                other=None if target.other is None else target.other[:, columns],
            )
    return targets
