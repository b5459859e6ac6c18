"""Record one run of a model: the uses of its weights, smooth functions behind them, and BatchNorm that can be folded.

A function mode sees every torch function and recognises weights by identity, so bare parameters, shared modules and
modules called twice need no special case.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hessprune.errors import HessPruneError, UnsupportedModelError
from hessprune.foundation.misfits import failing_module
from hessprune.foundation.modules import forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import leading_size, sample_rows, tensors_in
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.layers.choices import Choices
from hessprune.operators.maps import Arguments, LinearMap, SampleLayout
from hessprune.operators.names import is_in_place
from hessprune.operators.table import Operator, operator_of

_LINEAR = operator_of(F.linear)
ALONE = 16
"""Samples that run one by one to see whether the sizes of selections differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """One use of a weight: the linear map, and the shapes of its input and output."""

    weight: str
    call: LinearMap
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(kw_only=True)
class Recording:
    """Facts that one run of a model shows."""

    uses: list[Use] = field(default_factory=list)
    smooth: set[str] = field(default_factory=set)
    """Weights with a smooth function, or a product of activations, behind them."""
    foldable: list[tuple[str, int]] = field(default_factory=list)
    """Pairs of a weight and the `id` of a running mean that normalises the output of this weight alone."""
    absorbing: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each weight whose mean output a BatchNorm subtracts: `id` of the running mean and the first channel there."""
    looked_up: set[str] = field(default_factory=set)
    """Weights whose rows are looked up by number, such as an embedding that is the last layer, too."""
    layouts: dict[str, SampleLayout] = field(default_factory=dict)
    """For each weight the place of the samples in its input."""
    met: set[str] = field(default_factory=set)
    """Weights that reach another function than a convolution or a linear map."""
    shared: set[str] = field(default_factory=set)
    """Weights that read the same for all samples, such as a table of positions: no sample has a part of its own."""
    routed: set[str] = field(default_factory=set)
    """Weights whose rows are chosen by numbers, such as those of experts, some or none of each sample: samples must run
    alone."""
    divided: set[str] = field(default_factory=set)
    """Weights of which some products take a part of the rows or columns."""
    chooses: bool = False
    """True if sizes depend on the numbers of the inputs."""
    bytes_per_sample: int = 0
    """Bytes of all intermediate results, for one sample."""

    @property
    def unfit(self) -> set[str]:
        """Weights whose rows of inputs are no regression that a refit could adapt."""
        return self.routed | self.divided

    def count(self, weight: str) -> int:
        """Return how often `weight` is used."""
        return sum(use.weight == weight for use in self.uses)


class _BatchStatisticsError(HessPruneError):
    """A BatchNorm computes the statistics of its batch in evaluation mode."""


def _without_statistics(model: nn.Module, name: str) -> str:
    """Name the BatchNorm that has no running statistics, and the remedy."""
    is_layer = isinstance(model.get_submodule(name), _BatchNorm)
    remedy = (
        "Give it statistics: model = hp.reestimate_batchnorm(model, batches)."
        if is_layer
        else "Call a nn.BatchNorm or nn.GroupNorm module in its forward."
    )
    return (
        f"`model` must normalise with running statistics in evaluation mode, got a BatchNorm without them in module "
        f"{name!r}, which lets samples influence each other. {remedy}"
    )


class _Recorder(CallMode):
    """Keeps for every tensor the weights on which it depends."""

    def __init__(self, names: Mapping[int, str], samples: int) -> None:
        super().__init__(names, samples)
        self.recording = Recording()
        self._alive: list[Any] = []  # ids must not be reused while we compare them
        self._depends: dict[int, frozenset[str]] = {}
        self.consumed: Counter[int] = Counter()
        self._producer: dict[int, str] = {}
        self.normalised: list[tuple[int, str, int]] = []
        self._means: Counter[int] = Counter()
        self._parts: dict[int, list[tuple[int, str, int]]] = {}
        self._absorbed: list[tuple[int, int, str, tuple[int, int]]] = []
        self.inputs: list[Tensor] = []
        self.choices = Choices()

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        x = arguments[0]
        self.inputs.append(x.clone())  # an activation may overwrite it in place
        output = call.forward(*arguments)
        self.choices.read(name, x, output)
        self._see(_LINEAR, arguments, output, frozenset([name]))
        self._producer[id(output)] = name
        self.recording.uses.append(
            Use(weight=name, call=call, input_shape=tuple(x.shape), output_shape=tuple(output.shape))
        )
        return output

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:  # noqa: ARG002
        output, operator = func(*args, **kwargs), operator_of(func)
        self.choices.see(operator.name, args, kwargs, output)
        self.recording.met |= {self._names[id(each)] for each in [*args, *kwargs.values()] if id(each) in self._names}
        if operator.derivative != "look":
            if operator.name == "batch_norm":
                self._see_batch_norm(batch_norm_arguments(func, args, kwargs))
            if operator.name == "embedding":
                given = [*args, *kwargs.values()]
                self.recording.looked_up |= {self._names[id(arg)] for arg in given if id(arg) in self._names}
            if operator.name == "cat":
                self._see_concatenation(output, *args, **kwargs)
            self._see(operator, [*args, *kwargs.values()], output, overwrites=is_in_place(func))
        return output

    def _see_batch_norm(self, arguments: Mapping[str, Any]) -> None:
        """Note a BatchNorm and the weight whose output it normalises; refuse statistics of the batch."""
        x, mean = arguments["input"], arguments["running_mean"]
        if arguments.get("training") or mean is None:
            raise _BatchStatisticsError
        self._means[id(mean)] += 1
        if id(x) in self._producer:
            self.normalised.append((id(x), self._producer[id(x)], id(mean)))
            self._absorbed.append((id(x), id(x), self._producer[id(x)], (id(mean), 0)))
        for tensor, weight, start in self._parts.get(id(x), ()):
            self._absorbed.append((id(x), tensor, weight, (id(mean), start)))

    def _see_concatenation(
        self, output: Tensor, tensors: Any, dim: int = 0, *, axis: int | None = None, **_: Any
    ) -> None:
        """Note the weights whose outputs lie side by side along the channels; `axis` is numpy's name of `dim`."""
        if (dim if axis is None else axis) % output.dim() == 1:
            starts = accumulate((tensor.shape[1] for tensor in tensors), initial=0)
            pairs = zip(tensors, starts, strict=False)
            parts = [(id(t), self._producer[id(t)], start) for t, start in pairs if id(t) in self._producer]
            self._parts[id(output)] = parts

    def _see(
        self,
        operator: Operator,
        inputs: Iterable[Any],
        output: Any,
        weights: frozenset[str] = frozenset(),
        *,
        overwrites: bool = False,
    ) -> None:
        """Note the inputs that one function consumes, the weights behind its outputs, and its derivative."""
        inputs = list(tensors_in(list(inputs)))
        outputs = list(tensors_in(output))
        sources = [self._depends.get(id(tensor), frozenset()) for tensor in inputs]
        if not operator.is_piecewise_linear([place for place, source in enumerate(sources) if source]):
            self.recording.smooth.update(*sources)
        union = weights.union(*sources)
        if union:  # what depends on no weight may go, such as the buffers in which sharded weights are gathered
            self._alive += [*inputs, *outputs]
            self.consumed.update(id(tensor) for tensor in inputs)
            self._depends |= dict.fromkeys(map(id, outputs + (inputs[:1] if overwrites else [])), union)
        fresh = [tensor for tensor in outputs if tensor._base is None and all(tensor is not i for i in inputs)]
        self.recording.bytes_per_sample += sum(tensor.nbytes for tensor in fresh) // self.samples

    def finish(self, output: Any) -> None:
        """Conclude the run: pairs can be folded if nothing else uses the tensor or either module."""
        self.consumed.update(id(tensor) for tensor in tensors_in(output))
        self.recording.divided = self.divided
        weights = Counter(use.weight for use in self.recording.uses)
        means = Counter(mean for _, _, mean in self.normalised)
        self.recording.foldable = [
            (weight, mean)
            for tensor, weight, mean in self.normalised
            if self.consumed[tensor] == weights[weight] == means[mean] == 1
        ]
        self.recording.absorbing = {
            weight: place
            for whole, tensor, weight, place in self._absorbed
            if self.consumed[whole] == self.consumed[tensor] == weights[weight] == self._means[place[0]] == 1
        }


def batch_norm_arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a BatchNorm by name; ATen's has the affine terms in front of the statistics."""
    statistics, affine = ("running_mean", "running_var"), ("weight", "bias")
    order = statistics + affine if func is F.batch_norm else affine + statistics
    return {**dict(zip(("input", *order, "training", "momentum", "eps"), args, strict=False)), **kwargs}


def record(model: nn.Module, inputs: Any) -> Recording:
    """Run `model` in evaluation mode, without gradients, on two samples and on one; return the facts of both runs."""
    pair = _run(model, sample_rows(inputs, torch.tensor([0, -1], device="cpu")), 2)
    alone = _run(model, sample_rows(inputs, torch.tensor([0], device="cpu")), 1)
    for use, both, one in zip(pair.recording.uses, pair.inputs, alone.inputs, strict=True):
        pair.recording.layouts[use.weight] = _layout(both, one)
        if both.shape == one.shape:
            pair.recording.shared.add(use.weight)
    if pair.choices.found:
        pair.recording.chooses = True
        pair.recording.routed = _routed(model, inputs, pair.choices.readers | alone.choices.readers)
        pair.recording.shared -= pair.recording.routed
        pair.recording.layouts |= dict.fromkeys(pair.recording.routed, SampleLayout())
    return pair.recording


def _routed(model: nn.Module, inputs: Any, chosen: set[str]) -> set[str]:
    """Return the weights whose rows differ between samples, and those `chosen` by numbers, unless each takes one row.

    Equal numbers of rows of the samples that are looked at prove nothing of others.
    """
    shapes: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for number in range(min(leading_size(inputs), ALONE)):
        alone = _run(model, sample_rows(inputs, torch.tensor([number], device="cpu")), 1).recording
        for place, use in enumerate(alone.uses):
            shapes.setdefault((use.weight, place), set()).add(use.input_shape)
    differing = {weight for (weight, _), found in shapes.items() if len(found) > 1}
    several = any(shape[0] != 1 for (weight, _), found in shapes.items() if weight in chosen for shape in found)
    return differing | (chosen if several else set())


def _layout(both: Tensor, one: Tensor) -> SampleLayout:
    """Find the samples in the input of a layer: compare its input for two samples with its input for one."""
    axis = next((axis for axis in range(both.dim()) if both.shape[axis] != one.shape[axis]), 0)
    both, one = both.movedim(axis, 0), one.movedim(axis, 0)
    apart = both[::2].shape == one.shape and not torch.allclose(both[: len(one)], one, rtol=1e-3, atol=1e-5)
    return SampleLayout(axis=axis, inner=apart and torch.allclose(both[::2], one, rtol=1e-3, atol=1e-5))


def _run(model: nn.Module, inputs: Any, samples: int) -> _Recorder:
    recorder = _Recorder(weight_names(model), samples)
    with evaluation_mode(model), torch.no_grad(), slow_attention(), recorder:
        try:
            output = forward(model, inputs)
        except _BatchStatisticsError as error:
            raise UnsupportedModelError(_without_statistics(model, failing_module(model, error))) from error
    recorder.finish(output)
    return recorder
