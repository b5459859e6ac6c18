"""Compensation: the survivors make up for the removed, without training.

Every layer of the pruned model is refitted in forward order so that, on its already changed inputs, it gives the dense
layer's output; or the dense sum, where its output is added to a residual stream: so it also makes up for what the
stream lost before. Each model runs once over the calibration samples; each layer looks at a random sample of positions.
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
from hessprune.surgery.implants.arrangement import origins
from hessprune.surgery.implants.module import parts_of

ROWS_PER_INPUT, MIN_ROWS, MAX_ROWS = 48, 8192, 32768
"""Sampled positions: this many for each column of the regression, within bounds."""
TRIAL_ROWS = 0.25
"""Share of these with which it is tried whether refitting helps at all."""
MIN_SAMPLES = 10
"""Fewer cannot both fit and judge."""
MEMORY = 2 << 30
"""Bytes of activations that one forward pass may hold; more calibration samples than fit are left out."""
NEGLIGIBLE = 1e-6
"""Share of the largest BatchNorm factor below which a channel's output does not matter."""
LIVE = 4
"""Times the largest input and output of a layer that a forward pass holds at once."""


def compensate(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any, *, loss_fn: Any = None) -> nn.Module:
    """Refit a pruned model's layers to the dense layers' outputs, if that lowers the loss on samples held out.

    For each convolution or linear layer in forward order, `min_W ‖Y − X W‖² + λ ‖W − W₀‖²`, where `X` are the layer's
    inputs in the pruned model so far and `Y` the dense layer's outputs. Where these, scaled by `s = γ / σ` if BatchNorm
    follows, are added to a tensor `R` that was computed before, the sum is fitted: `s Y + R − R'` by `s X W`, with `R'`
    the pruned model's. `λ` is chosen on held-out samples, the constant goes into the bias or into the BatchNorm behind.
    Normal equations in float64.

    Args:
        dense: The model the plan was made for.
        pruned: What `apply_plan` made of it; both are left untouched.
        plan: The plan between them.
        batches: Calibration data, a re-iterable of `(inputs, targets)`.
        loss_fn: The loss that decides; cross-entropy if None.

    Returns:
        A new model: refitted on all samples, or an equal copy of `pruned` where refitting on four fifths of them does
        not lower the loss on the last fifth, or where there are fewer than ten.

    Raises:
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
    """Join as many calibration samples as memory allows into one batch; no more batches are read than that takes."""
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
    """Return how many samples one forward pass can hold, measured on two of these."""
    uses = record(model, inputs).uses
    largest = max(math.prod(use.input_shape) + math.prod(use.output_shape) for use in uses) // 2
    return max(2, MEMORY // (4 * LIVE * largest))


@torch.no_grad()
def _loss(model: nn.Module, inputs: Any, targets: Tensor, loss_fn: Any) -> float:
    with evaluation_mode(model):
        return float(loss_fn(logits_of(call_model(model, inputs)), targets))


def refit(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Return a refitted copy of `pruned` without asking whether that helps: for models that are only looked at."""
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
        targets = _targets(teacher.wanted, plan, dense, student)
        with progress_bar("least squares", len(teacher.wanted)) as bar:
            mode.follow(targets, bar.advance)
            with mode:
                call_model(student, inputs)
    return student


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """What the dense layer gave at a sample of positions, and what was added to it."""

    weight: str
    positions: Tensor  # (R,)
    output: Tensor  # (R, O)
    other: Tensor | None  # (R, O)


class _Teacher(StepMode):
    """Notes every layer's output at random positions."""

    def __init__(self, model: nn.Module, samples: int, branches: Mapping[str, Branch], share: float) -> None:
        super().__init__(model, samples, branches)
        self._share = share
        self.wanted: list[_Target] = []
        self._generator = torch.Generator().manual_seed(0)

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        out = call.forward(*arguments)
        rows = rows_of(call, out)
        usual = max(MIN_ROWS, min(MAX_ROWS, ROWS_PER_INPUT * arguments[1][0].numel()))
        count = min(len(rows), int(self._share * usual))
        positions = torch.randperm(len(rows), generator=self._generator)[:count].sort().values.to(rows.device)
        other = rows_of(call, self.take_other(name))[positions] if name in self.branches else None
        self.wanted.append(_Target(weight=name, positions=positions, output=rows[positions], other=other))
        return out


class _Student(StepMode):
    """Refits each layer just before it runs, so that the next one sees what it will really get."""

    def __init__(self, model: nn.Module, samples: int, recording: Recording, branches: Mapping[str, Branch]) -> None:
        super().__init__(model, samples, branches, recording.layouts)
        means = {id(buffer): buffer for buffer in model.buffers()}
        self._means = {weight: means[mean][at:] for weight, (mean, at) in recording.absorbing.items()}
        self._once = {use.weight for use in recording.uses if recording.count(use.weight) == 1}

    def follow(self, targets: Mapping[str, _Target], advance: Any) -> None:
        """Say what to fit to, by weight."""
        self._targets, self._advance = targets, advance

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        target = self._targets.get(name)
        if target and name in self._once and not (isinstance(call, Convolution) and call.transposed):
            self._refit(name, call, arguments, target)
        self._advance()
        return call.forward(*arguments)

    def _refit(self, name: str, call: LinearMap, arguments: Arguments, target: _Target) -> None:
        """Fit a layer to the dense layer's output; before an addition, to the dense sum."""
        x, weight, bias = arguments
        inputs, mean = design(call, x, weight, target.positions), self._means.get(name)
        old = columns_of(call, weight)
        scale, missing = self._sum(name, call, target)
        output = target.output if bias is None else target.output - bias
        wanted, unit = (output * scale + missing).unflatten(1, (old.shape[0], -1)), scale.view(old.shape[0], 1, -1)
        rows_per_sample = len(rows_of(call, call.forward(x[:1], weight, None))) * x.shape[0] // self.samples
        held_out = (target.positions // max(rows_per_sample, 1)) % 5 == 0
        fit = ridge(inputs, wanted, old * unit, held_out=held_out, with_shift=bias is not None or mean is not None)
        weight.copy_(weight_from(call, fit.weight / unit, weight))
        shift = (fit.shift / unit.squeeze(1)).flatten()
        if bias is not None:
            bias += shift.to(bias.dtype)
        elif mean is not None:
            mean[: shift.numel()] -= shift.to(mean.dtype)

    def _sum(self, name: str, call: LinearMap, target: _Target) -> tuple[Tensor, Tensor | float]:
        """Return the factors between a layer's output and a sum, `(O,)`, and what the sum lacks elsewhere, `(R, O)`."""
        ones = target.output.new_ones(target.output.shape[1])
        if target.other is None:
            return ones, 0.0
        missing = target.other - rows_of(call, self.take_other(name))[target.positions]
        scale = self.branches[name].scale
        if scale is None:
            return ones, missing
        return torch.where(scale.abs() > NEGLIGIBLE * scale.abs().max(), scale, ones), missing


def _targets(wanted: list[_Target], plan: Plan, dense: nn.Module, student: nn.Module) -> dict[str, _Target]:
    """Restrict the dense outputs to what each weight of the student gives; of several uses the last one counts."""
    shapes = {name: parameter.shape for name, parameter in dense.named_parameters(remove_duplicate=False)}
    axes = [(p.param, p.dim) for group in plan.groups for p in group.slices_with_role("producer")]
    rows = {name: kept for (name, _), kept in origins(plan, {(n, dim): shapes[n][dim] for n, dim in axes}).items()}
    sizes = {name: shapes[name][dim] for name, dim in axes}
    given = {name: [(name, rows.get(name))] for name in shapes}
    for layer, _, parts in parts_of(student, dense, plan):
        given[f"{layer}.weight"] = [(f"{part.name}.weight", part.rows) for part in parts]
    targets = {}
    for target in wanted:
        for name, kept in given[target.weight]:
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
