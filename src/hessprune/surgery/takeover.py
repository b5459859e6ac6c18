"""Compensation without data: the inputs that stay take over for those that go, by the moments of the dense inputs.

Each layer that loses inputs is fitted by itself, to what the dense layer makes of dense inputs. So errors of earlier
layers go uncorrected, which `refitting` would see; in return nothing runs but an example.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.layers.input_moments import InputMoments
from hessprune.layers.recording import Recording, record
from hessprune.layers.regression import columns_of, weight_from
from hessprune.operators.maps import Convolution, LinearMap
from hessprune.planning.plan import Plan
from hessprune.surgery.implants.arrangement import origins

LEAST_VARIANCE = 1e-2
"""Least factor of a variance, for outputs of which next to nothing is left."""


@torch.no_grad()
def take_over(
    dense: nn.Module, pruned: nn.Module, plan: Plan, moments: Mapping[str, InputMoments], example_inputs: Any
) -> nn.Module:
    """Return a copy of `pruned` whose layers make up for lost inputs as well as moments of dense inputs tell.

    For a layer `y = x W` without the inputs `J`, `W_K ← W_K + (C_KK + λ I)⁻¹ C_KJ W_J`, the least squares on dense
    inputs. The constant goes into the bias, or into the mean of the BatchNorm behind the layer; its variance is scaled
    by what is left of that of the outputs, for their sum shrinks where inputs are missing. Costs `K³ / 3` for each
    layer, and two runs of the example.

    Args:
        dense: The model that the plan was made for.
        pruned: The model that the plan leaves; untouched.
        plan: The plan between them, without implants.
        moments: Of the inputs of `dense`, by weight.
        example_inputs: Inputs of any kind that the model takes.

    Example:
        >>> import torch, hessprune as hp
        >>> from hessprune.layers.input_moments import InputMoments
        >>> from hessprune.surgery.takeover import take_over
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Linear(2, 1))  # both units are always equal
        >>> _ = net[1].weight.data.fill_(1.0)
        >>> x = torch.zeros(1, 4)
        >>> groups, saliency = hp.find_groups(net, x), {"0": torch.arange(2.0)}
        >>> plan = hp.make_plan(net, groups, saliency, hp.Budget(units=0.5), example_inputs=x)
        >>> equal = InputMoments(mean=torch.zeros(1, 2), covariance=torch.ones(1, 2, 2), rows=9)
        >>> smaller = take_over(net, hp.apply_plan(net, plan), plan, {"1.weight": equal}, x)
        >>> round(smaller[1].weight.item(), 2)
        2.0
    """
    student = copy.deepcopy(pruned)
    recording = record(student, example_inputs)
    calls: dict[str, list[LinearMap]] = {}
    for use in recording.uses:
        calls.setdefault(use.weight, []).append(use.call)
    weights, new = dict(dense.named_parameters()), dict(student.named_parameters())
    axes = {(p.param, p.dim) for group in plan.groups for p in group.slices if p.param in weights}
    kept = origins(plan, {(name, dim): weights[name].shape[dim] for name, dim in axes})
    absorbers = _Absorbers(student, recording)
    for name, held in moments.items():
        uses = calls.get(name, [])
        if len({use.transposed for use in uses}) == 1 and (layer := _layer(name, uses[0], weights[name], kept)):
            bias = new.get(f"{name.removesuffix('weight')}bias") if held.biased and name.endswith("weight") else None
            fit = layer.fitted(held, centred=bias is not None or name in recording.absorbing)
            new[name].copy_(fit.weight)
            absorbers.take(name, bias, fit)
    return student


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    weight: Tensor
    """Of the pruned model's shape."""
    shift: Tensor  # (O,)
    shrinkage: Tensor  # (O,): variance of the outputs over that of the dense outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A layer of the dense model that loses inputs."""

    call: LinearMap
    weight: Tensor
    kept: Tensor
    """Channels of its input that stay."""
    rows: Tensor | None
    """Outputs that stay; all if None."""

    def fitted(self, moments: InputMoments, *, centred: bool) -> _Fit:
        """Fit the layer to what it makes of all inputs."""
        device, whole = moments.mean.device, columns_of(self.call, self.weight).double()
        whole = whole.to(device)
        stays = torch.zeros(self.weight.shape[1 - self._output_axis], dtype=torch.bool, device="cpu")
        stays[self.kept] = True
        entries = self.weight[0, 0].numel() if isinstance(self.call, Convolution) else 1
        kept, gone = (self._columns(channels, entries) for channels in (self.kept, (~stays).nonzero().squeeze(1)))
        columns = whole[:, kept] + moments.takeover(kept, gone, whole[:, gone], centred=centred)
        mean, second = moments.mean.double()[:, None], moments.about(centred=True)
        shift = mean @ whole - mean[:, :, kept] @ columns
        before = (whole * (second @ whole)).sum(1)
        after = (columns * (second[:, kept][:, :, kept] @ columns)).sum(1)
        shrinkage = torch.where(before > 1e-12 * before.amax(), after / before.clamp(min=1e-300), 1.0)
        shape = list(self.weight.shape)
        shape[1 - self._output_axis] = len(self.kept)
        weight = weight_from(self.call, columns.to(self.weight.device), self.weight.new_empty(shape))
        return _Fit(
            weight=weight if self.rows is None else weight.index_select(self._output_axis, self.rows.to(weight.device)),
            shift=self._left(shift.flatten()),
            shrinkage=self._left(shrinkage.flatten()).clamp(min=LEAST_VARIANCE),
        )

    @property
    def _output_axis(self) -> int:
        return int(self.call.transposed)

    def _columns(self, channels: Tensor, entries: int) -> Tensor:
        """Return the rows of the regression's matrix that belong to some channels."""
        return (channels[:, None] * entries + torch.arange(entries, device="cpu")).flatten()

    def _left(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[self.rows]


def _layer(name: str, call: LinearMap, weight: Tensor, kept: Mapping[tuple[str, int], Tensor]) -> _Layer | None:
    """Return a layer that loses inputs, but all of them in each group alike; None for any other."""
    output_axis = int(call.transposed)
    inputs, rows = kept.get((name, 1 - output_axis)), kept.get((name, output_axis))
    loses_groups = isinstance(call, Convolution) and call.groups > 1 and rows is not None and len(rows) < len(weight)
    if inputs is None or len(inputs) == weight.shape[1 - output_axis] or loses_groups:
        return None
    return _Layer(call=call, weight=weight, kept=inputs, rows=rows)


class _Absorbers:
    """Biases, and the statistics of BatchNorm behind layers, which take what a fit leaves over."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._places = recording.absorbing
        pairs = ((getattr(m, "running_mean", None), getattr(m, "running_var", None)) for m in model.modules())
        self._statistics = {id(mean): (mean, variance) for mean, variance in pairs if mean is not None}

    def take(self, name: str, bias: Tensor | None, fit: _Fit) -> None:
        """Add the constant of a layer's fit, and scale the variance behind it."""
        identity, start = self._places.get(name, (0, 0))
        mean, variance = self._statistics.get(identity, (None, None))
        part = slice(start, start + len(fit.shift))
        if bias is not None:
            bias += fit.shift.to(bias)
        elif mean is not None:
            mean[part] -= fit.shift.to(mean)
        if variance is not None:
            variance[part] *= fit.shrinkage.to(variance)
