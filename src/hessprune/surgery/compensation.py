"""Compensation: the survivors make up for the removed, without training.

Every layer of the pruned model is refitted in forward order so that, on its already changed inputs, it gives the dense
layer's output. Each model runs once over the calibration samples; each layer looks at a random sample of positions.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune._checks import check_batches, leading_size
from hessprune._modules import call_model, device_of, join_inputs, logits_of, sample_rows, to_device
from hessprune._progress import progress_bar
from hessprune._state import evaluation_mode
from hessprune._watch.calls import Arguments, Call, Convolution
from hessprune._watch.recording import CallMode, Recording, record, slow_attention, weight_names
from hessprune._watch.regression import columns_of, design, rows_of, weight_from
from hessprune.planning.plan import Plan
from hessprune.surgery.arrangement import origins
from hessprune.surgery.implant import parts_of
from hessprune.surgery.least_squares import ridge

ROWS_PER_INPUT, MIN_ROWS, MAX_ROWS = 12, 4096, 32768
"""Sampled positions: this many for each column of the regression, within bounds."""
MIN_SAMPLES = 10
"""Fewer cannot both fit and judge."""
MEMORY = 2 << 30
"""Bytes of activations that one forward pass may hold; more calibration samples than fit are left out."""


def compensate(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any, *, loss_fn: Any = None) -> nn.Module:
    """Refit a pruned model's layers to the dense layers' outputs, if that lowers the loss on samples held out.

    For each convolution or linear layer in forward order, `min_W ‖Y − X W‖² + λ ‖W − W₀‖²`, where `X` are the layer's
    inputs in the pruned model so far and `Y` the dense layer's outputs. `λ` is chosen on held-out samples, the constant
    goes into the bias or into the BatchNorm behind. Normal equations in float64.

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
    """
    check_batches(batches)
    inputs, targets = _gather(batches, pruned)
    if len(targets) < MIN_SAMPLES:
        return copy.deepcopy(pruned)
    test = torch.arange(len(targets)) % 5 == 0
    loss_fn = loss_fn or F.cross_entropy
    trial = _refitted(dense, pruned, plan, sample_rows(inputs, (~test).nonzero().squeeze(1)))
    held_out = sample_rows(inputs, test.nonzero().squeeze(1)), targets[test]
    if _loss(trial, *held_out, loss_fn) < _loss(pruned, *held_out, loss_fn):
        return _refitted(dense, pruned, plan, inputs)
    return copy.deepcopy(pruned)


def _gather(batches: Any, model: nn.Module) -> tuple[Any, Tensor]:
    """Join as many calibration samples as memory allows into one batch."""
    joined = join_inputs([inputs for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    per_sample = max(record(model, to_device(joined, device_of(model))).bytes_per_sample, 1)
    rows = torch.arange(min(len(targets), max(2, MEMORY // per_sample)))
    return to_device(sample_rows(joined, rows), device_of(model)), targets[rows].to(device_of(model))


@torch.no_grad()
def _loss(model: nn.Module, inputs: Any, targets: Tensor, loss_fn: Any) -> float:
    with evaluation_mode(model):
        return float(loss_fn(logits_of(call_model(model, inputs)), targets))


def refit(dense: nn.Module, pruned: nn.Module, plan: Plan, batches: Any) -> nn.Module:
    """Return a refitted copy of `pruned` without asking whether that helps: for models that are only looked at."""
    return _refitted(dense, pruned, plan, _gather(batches, pruned)[0])


@torch.no_grad()
def _refitted(dense: nn.Module, pruned: nn.Module, plan: Plan, inputs: Any) -> nn.Module:
    """Return a copy of `pruned`, refitted on one batch of inputs."""
    student = copy.deepcopy(pruned)
    recording, samples = record(student, inputs), leading_size(inputs)
    with evaluation_mode(dense), evaluation_mode(student), slow_attention():
        teacher = _Teacher(dense, samples)
        with teacher:
            call_model(dense, inputs)
        with progress_bar("least squares", len(teacher.wanted)) as bar, _Student(student, samples, recording) as mode:
            mode.follow(_targets(teacher.wanted, plan, dense, student), bar.advance)
            call_model(student, inputs)
    return student


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """What the dense layer gave at a sample of positions."""

    weight: str
    positions: Tensor  # (R,)
    output: Tensor  # (R, O)


class _Teacher(CallMode):
    """Notes every layer's output at random positions."""

    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__(weight_names(model), samples)
        self.wanted: list[_Target] = []
        self._generator = torch.Generator().manual_seed(0)

    def on_call(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        out = call.forward(*arguments)
        rows = rows_of(call, out)
        count = min(len(rows), max(MIN_ROWS, min(MAX_ROWS, ROWS_PER_INPUT * arguments[1][0].numel())))
        positions = torch.randperm(len(rows), generator=self._generator)[:count].sort().values.to(rows.device)
        self.wanted.append(_Target(weight=name, positions=positions, output=rows[positions]))
        return out


class _Student(CallMode):
    """Refits each layer just before it runs, so that the next one sees what it will really get."""

    def __init__(self, model: nn.Module, samples: int, recording: Recording) -> None:
        super().__init__(weight_names(model), samples, recording.layouts)
        means = {id(buffer): buffer for buffer in model.buffers()}
        self._means = {weight: means[mean][at:] for weight, (mean, at) in recording.absorbing.items()}
        self._once = {use.weight for use in recording.uses if recording.count(use.weight) == 1}

    def follow(self, targets: Mapping[str, _Target], advance: Any) -> None:
        """Say what to fit to, by weight."""
        self._targets, self._advance = targets, advance

    def on_call(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        target = self._targets.get(name)
        if target and name in self._once and not (isinstance(call, Convolution) and call.transposed):
            self._refit(name, call, arguments, target)
        self._advance()
        return call.forward(*arguments)

    def _refit(self, name: str, call: Call, arguments: Arguments, target: _Target) -> None:
        x, weight, bias = arguments
        inputs, mean = design(call, x, weight, target.positions), self._means.get(name)
        old = columns_of(call, weight)
        wanted = (target.output if bias is None else target.output - bias).unflatten(1, (old.shape[0], -1))
        rows_per_sample = len(rows_of(call, call.forward(x[:1], weight, None))) * x.shape[0] // self.samples
        held_out = (target.positions // max(rows_per_sample, 1)) % 5 == 0
        fit = ridge(inputs, wanted, old, held_out=held_out, with_shift=bias is not None or mean is not None)
        weight.copy_(weight_from(call, fit.weight, weight))
        if bias is not None:
            bias += fit.shift.flatten().to(bias.dtype)
        elif mean is not None:
            mean[: fit.shift.numel()] -= fit.shift.flatten().to(mean.dtype)


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
            out = target.output
            out = out if kept is None or sizes[target.weight] != out.shape[1] else out[:, kept.to(out.device)]
            targets[name] = _Target(weight=name, positions=target.positions, output=out)
    return targets
