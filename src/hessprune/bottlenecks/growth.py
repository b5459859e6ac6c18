"""The gain of one more unit in each group: the wanted update that the readers of the group cannot express."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.errors import HessPruneError
from hessprune.foundation.modules import call_model, device_of, shared_copy
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import leading_size, to_device
from hessprune.layers.calls import CallMode
from hessprune.objectives.choice import choose_objective
from hessprune.objectives.objective import Objective
from hessprune.operators.maps import Convolution, LinearMap
from hessprune.pruning.task import Task
from hessprune.structure.groups import Group, Role

_log = logging.getLogger(__name__)

RIDGE = 1e-4
"""Added to the diagonals of second moments, as a share of their mean."""
WIDEST = 4608
"""Inputs of a kernel, beyond which a decomposition takes minutes."""


@dataclass(kw_only=True)
class _Pair:
    """One layer that produces the units of a group, one that reads them, and the sums over the samples."""

    group: str
    producer: str
    consumer: str
    swapped: tuple[bool, bool]
    """True if the weights of both are used transposed."""
    inputs: Any = 0.0
    """`Σ h hᵀ` of the reading layer's kernel inputs."""
    wanted: Any = 0.0
    """`Σ V hᵀ`."""
    candidates: Any = 0.0
    """`Σ a aᵀ` of the producing layer's kernel inputs."""
    cross: Any = 0.0
    """`Σ a V⊥ᵀ`, one column for each output and place of the reading kernel."""
    positions: int = 0
    update: Tensor | None = field(default=None)


@dataclass(frozen=True, slots=True)
class _Call:
    call: LinearMap
    x: Tensor
    weight: Tensor
    output: Tensor


class _Tape(CallMode):
    """Keeps inputs and outputs of some layers; outputs are leaves of the gradient where nothing before them is."""

    def __init__(self, names: Mapping[int, str], samples: int) -> None:
        super().__init__(names, samples)
        self.calls: dict[str, _Call] = {}

    def on_call(self, name: str, call: LinearMap, arguments: Any) -> Tensor:
        x, weight, bias = arguments
        output = call.forward(x, weight, bias)
        if not output.requires_grad:
            output.requires_grad_()
        self.calls[name] = _Call(call, x.detach(), weight.detach(), output)
        return output


def growth(task: Task) -> dict[str, float]:
    """Return by group name the expected decrease of the loss by one more unit, to first order.

    Takes two passes with gradients over the samples, and one decomposition of a layer's second moments for each group.
    Without labels and loss there is no gradient, since the dense model is at its own optimum, and the dict is empty;
    a warning says why where there are targets that do not serve. A group is left out where no layer of moderate width
    produces and another one reads its units.
    """
    objective = _objective(task)
    if objective is None:
        return {}
    pairs = list(_pairs(task))
    for step in (_add_moments, _add_cross_moments):
        for calls, wanted in _passes(task, objective, pairs):
            for pair in pairs:
                if pair.producer in calls and pair.consumer in wanted:
                    step(pair, calls[pair.producer], calls[pair.consumer], wanted[pair.consumer])
        if step is _add_moments:
            for pair in pairs:
                _solve(pair)
    gains: dict[str, float] = {}
    for pair in pairs:
        if isinstance(pair.cross, Tensor):
            gains[pair.group] = gains.get(pair.group, 0.0) + _gain(pair)
    return gains


def _objective(task: Task) -> Objective | None:
    """Return the objective whose gradient new units follow; None, with a warning where there are targets, if none."""
    try:
        return choose_objective(
            task.model,
            task.batches,
            task.loss_fn,
            outputs=task.outputs,
            prefer="gradient",
            asker="the gain of new units",
        )
    except HessPruneError as error:
        if any(targets is not None for _, targets in task.batches):  # somebody who gives some hopes for a gain
            _log.warning("the gain of new units is left out: %s", error)
        return None


def _pairs(task: Task) -> Iterator[_Pair]:
    """Yield for each group its first producing layer beside each reading one, as far as both are of moderate width.

    Weights that are used transposed, those of transposed convolutions and of matrix products, have the axes swapped.
    """
    weights = dict(task.model.named_parameters())

    def layers(group: Group, role: Role, axis: int) -> list[tuple[str, bool]]:
        """Return the weights, each with whether it is used transposed; the others first."""
        pieces = [p for p in group.slices_with_role(role) if p.dim < 2 <= weights[p.param].dim()]
        return list(dict.fromkeys((p.param, p.dim != axis) for p in sorted(pieces, key=lambda p: p.dim != axis)))

    def is_moderate(name: str, swapped: bool) -> bool:
        shape = weights[name].shape
        return weights[name].numel() // shape[int(swapped)] <= WIDEST

    for group in task.groups:
        producers = layers(group, "producer", 0)
        for consumer in layers(group, "consumer", 1):
            rank = weights[consumer[0]].dim()
            fit = (each for each in producers if rank in (2, weights[each[0]].dim()))  # a kernel reads maps of its rank
            producer = next(fit, None)
            if producer and is_moderate(*producer) and is_moderate(*consumer):
                yield _Pair(
                    group=group.name, producer=producer[0], consumer=consumer[0], swapped=(producer[1], consumer[1])
                )


def _passes(
    task: Task, objective: Objective, pairs: Sequence[_Pair]
) -> Iterator[tuple[dict[str, _Call], dict[str, Tensor]]]:
    """Yield the calls of each batch, and by name of a reading layer the wanted update of its output."""
    wanted = {name for pair in pairs for name in (pair.producer, pair.consumer)}
    model = shared_copy(task.model)  # a forward may keep what it computes
    names = {id(p): name for name, p in model.named_parameters() if name in wanted}
    readers = list(dict.fromkeys(pair.consumer for pair in pairs))
    for inputs, targets in task.batches:
        inputs, targets = to_device((inputs, targets), device_of(task.model))
        samples = leading_size(inputs)
        with torch.enable_grad(), evaluation_mode(model), _Tape(names, samples) as tape:
            output = call_model(model, inputs)
            values, batch = objective.read(output, samples, inputs), objective.on(inputs, targets, samples)
            batch.see([(output, samples)], values)
            loss = batch.loss(values, torch.arange(samples, device=values.device))
            present = [name for name in readers if name in tape.calls]
            if not present:
                continue
            slopes = torch.autograd.grad(loss * samples, [tape.calls[n].output for n in present], allow_unused=True)
        yield tape.calls, {n: -slope for n, slope in zip(present, slopes, strict=True) if slope is not None}


def _add_moments(pair: _Pair, producer: _Call, consumer: _Call, wanted: Tensor) -> None:
    """Add the moments of the reading layer's inputs and of the candidates."""
    if (producer.call.transposed, consumer.call.transposed) != pair.swapped:
        return
    h, v = _kernel_inputs(consumer), _by_position(consumer, wanted)
    a = _kernel_inputs(producer)
    if h is None or v is None or a is None or h.shape[0] != v.shape[0]:
        return
    pair.inputs = pair.inputs + h.T @ h
    pair.wanted = pair.wanted + v.T @ h
    pair.candidates = pair.candidates + a.T @ a * (len(h) / len(a))
    pair.positions += len(h)


def _solve(pair: _Pair) -> None:
    if isinstance(pair.inputs, Tensor):
        pair.update = torch.linalg.solve(_ridged(pair.inputs), pair.wanted.T).T


def _add_cross_moments(pair: _Pair, producer: _Call, consumer: _Call, wanted: Tensor) -> None:
    """Add the products of candidates with what the reading layer's inputs leave of the wanted update."""
    if pair.update is None:
        return
    h = _kernel_inputs(consumer)
    v = _by_position(consumer, wanted)
    assert h is not None, "the first pass has read it"
    assert v is not None, "the first pass has read it"
    rest = v - h @ pair.update.T
    pair.cross = pair.cross + _cross(producer, consumer, rest, wanted.shape)


def _cross(producer: _Call, consumer: _Call, rest: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `Σ a V⊥ᵀ`: the gradient of the reading layer's weight, had it the candidates for inputs."""
    maps = _maps(producer)
    assert maps is not None, "the first pass has read it"
    if isinstance(consumer.call, Convolution):
        size = consumer.x.shape[2:]
        if maps.shape[2:] != size:
            maps = F.interpolate(maps, size=size, mode="nearest") if not _pools(maps, size) else _pooled(maps, size)
        delta = rest.to(maps.dtype).view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
        swapped = consumer.call.transposed
        channels = (maps.shape[1], shape[1]) if swapped else (shape[1], maps.shape[1])
        whole = replace(consumer.call, groups=1)
        found = whole.weight_gradient(delta, maps.contiguous(), delta.new_empty(*channels, *consumer.weight.shape[2:]))
        return (found if swapped else found.transpose(0, 1)).flatten(1).double()
    a = maps.flatten(2).transpose(1, 2)
    rest = rest.view(a.shape[0], -1, rest.shape[-1])
    if a.shape[1] != rest.shape[1]:
        a, rest = a.mean(1, keepdim=True), rest.sum(1, keepdim=True)
    return a.reshape(-1, a.shape[-1]).double().T @ rest.reshape(-1, rest.shape[-1]).double()


def _pools(maps: Tensor, size: Sequence[int]) -> bool:
    return all(now >= then for now, then in zip(maps.shape[2:], size, strict=True))


def _pooled(maps: Tensor, size: Sequence[int]) -> Tensor:
    pool = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
    return pool(maps, list(size))  # type: ignore[arg-type]


def _maps(call: _Call) -> Tensor | None:
    """Return the kernel inputs of a layer at each of its output positions, `(N, K, *)`."""
    if isinstance(call.call, Convolution):
        if call.call.groups > 1:
            return None
        plain, x, weight = _plain(call.call, call.x, call.weight)
        return plain.patches(x, weight).unflatten(2, plain.output_size(x, weight))
    rows = call.call.layout.by_sample(call.x, call.call.samples)  # type: ignore[union-attr]
    return rows.transpose(1, 2)


def _plain(call: Convolution, x: Tensor, weight: Tensor) -> tuple[Convolution, Tensor, Tensor]:
    """Return the plain convolution, the maps with zeros between them, and a weight of the shape that it reads them by.

    The places of its kernel run the other way, which no sum over them shows.
    """
    if not call.transposed:
        return call, x, weight
    rank = weight.dim() - 2
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * step + 1 for n, step in zip(x.shape[2:], call.stride, strict=True)))
    spread[(..., *(slice(None, None, step) for step in call.stride))] = x
    axes = zip(weight.shape[2:], call.dilation, call.padding, call.output_padding, strict=True)
    sides = [(gap := dilation * (k - 1) - padding, gap + further) for k, dilation, padding, further in axes]
    padded = F.pad(spread, [side for pair in reversed(sides) for side in pair])
    zeros = (0,) * rank
    plain = Convolution(stride=(1,) * rank, padding=zeros, dilation=call.dilation, output_padding=zeros)
    return plain, padded, weight.transpose(0, 1)


def _kernel_inputs(call: _Call) -> Tensor | None:
    """Return one row for each sample and position, in float64."""
    maps = _maps(call)
    return None if maps is None else maps.flatten(2).transpose(1, 2).reshape(-1, maps.shape[1]).double()


def _by_position(call: _Call, delta: Tensor) -> Tensor | None:
    if isinstance(call.call, Convolution):
        return delta.flatten(2).transpose(1, 2).reshape(-1, delta.shape[1]).double()
    rows = call.call.layout.by_sample(delta, call.call.samples)  # type: ignore[union-attr]
    return rows.reshape(-1, rows.shape[-1]).double()


def _gain(pair: _Pair) -> float:
    """Return the square of the largest singular value of `S^{−1/2} N`."""
    values, vectors = torch.linalg.eigh(_ridged(pair.candidates / pair.positions))
    whitened = vectors * values.clamp(min=1e-30).rsqrt() @ vectors.T @ (pair.cross / pair.positions)
    return float(torch.linalg.matrix_norm(whitened, 2)) ** 2


def _ridged(matrix: Tensor) -> Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix + eye * (RIDGE * float(matrix.diagonal().mean()) + 1e-30)
