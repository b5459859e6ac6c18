"""Branches: layers whose output is added to a tensor that was computed before they ran.

In a residual network these are the last layers of the blocks. An earlier loss reaches the addition through the other
summand, so such a layer is the first that can make up for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import forward
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import sample_rows, tensors_in
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.layers.recording import batch_norm_arguments
from hessprune.operators.maps import Arguments, LinearMap, SampleLayout
from hessprune.operators.table import operator_of


class Step(NamedTuple):
    """A call of a function in a forward.

    Forwards on other samples may call other functions, such as those that make a mask where there is padding; a number
    over all functions would name another tensor there.
    """

    layers: int
    """Layers that ran before."""
    function: str
    form: tuple[int, int]
    """Axes of the result and size of the last one: masks have others than the activations beside them."""
    number: int
    """Among the calls of this function with results of this form since the last layer."""


Place = tuple[Step, int]
"""A tensor: the step that computed it, and its place among the tensors that this step returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """The other summand of the addition that takes the output of a layer."""

    other: Place
    scale: Tensor | None
    """Factors `γ / √(σ² + ε)` of a BatchNorm between the layer and the addition, `(O,)`."""


class StepMode(CallMode):
    """Counts the functions that a model calls, and keeps the other summands of branches until they are taken."""

    def __init__(
        self,
        model: nn.Module,
        samples: int,
        branches: Mapping[str, Branch],
        layouts: Mapping[str, SampleLayout] | None = None,
    ) -> None:
        super().__init__(weight_names(model), samples, layouts)
        self.branches = branches
        self._open = Counter(branch.other[0] for branch in branches.values())
        self._kept: dict[Step, tuple[Tensor, ...]] = {}
        self._layers = 0
        self._calls: Counter[tuple[str, tuple[int, int]]] = Counter()

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Handle a layer; subclasses override this method, not `on_call`."""
        return super().on_call(name, call, arguments)

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Count a layer."""
        self._layers += 1
        self._calls.clear()
        output = self.on_layer(name, call, arguments)
        self._keep(self._now("", output), output)
        return output

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Count another function."""
        output = super().on_other(func, name, args, kwargs)
        self._calls[name, _form(output)] += 1
        self._keep(self._now(name, output), output)
        return output

    def take_other(self, name: str) -> Tensor:
        """Return the other summand for the output of the layer `name`; works once."""
        step, place = self.branches[name].other
        summand = self._kept[step][place]
        self._open[step] -= 1
        if not self._open[step]:
            del self._kept[step]
        return summand

    def _now(self, function: str, output: Any) -> Step:
        """Return the step that has just been made."""
        form = _form(output)
        return Step(self._layers, function, form, self._calls[function, form])

    def _keep(self, step: Step, output: Any) -> None:
        """Keep the tensors of a step if a branch needs them."""
        if self._open[step]:
            self._kept[step] = tuple(tensors_in(output))


def find_branches(model: nn.Module, inputs: Any) -> dict[str, Branch]:
    """Run `model` in evaluation mode on one sample; return the branches by weight.

    A weight has a branch if the model uses it once and its output, perhaps through a BatchNorm, goes into one addition
    and nowhere else.
    """
    recorder, sample = _BranchRecorder(model), sample_rows(inputs, torch.tensor([0], device="cpu"))
    with evaluation_mode(model), torch.no_grad(), slow_attention(), recorder:
        output = forward(model, sample)
    return recorder.finish(output)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tail:
    """A tensor that is a layer's output, perhaps normalised."""

    weight: str
    layer: int  # its number among the calls of layers
    scale: Tensor | None = None


Key = tuple[int, int]
"""The `id` of a tensor and its number of in-place changes: a changed tensor counts as a new one."""


class _BranchRecorder(StepMode):
    """Follows the outputs of layers to additions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 1, {})
        self._alive: list[Any] = []  # ids must not be reused while we compare them
        self._version: Counter[int] = Counter()
        self._made: dict[Key, Place] = {}
        self._tails: dict[Key, _Tail] = {}
        self._consumed: Counter[Key] = Counter()
        self._uses: Counter[str] = Counter()
        self._sums: list[tuple[_Tail, Place]] = []

    def on_layer(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        output = call.forward(*arguments)
        self._uses[name] += 1
        self._consumed[self._key(arguments[0])] += 1
        self._note(output, (), self._now("", output))
        self._tails[self._key(output)] = _Tail(weight=name, layer=self._layers)
        return output

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        inputs = list(tensors_in([*args, *kwargs.values()]))
        keys = [self._key(tensor) for tensor in inputs]
        tail = self._tails.get(keys[0]) if keys else None
        operator = operator_of(func)
        if operator.name == "add" and len(inputs) == 2 and inputs[0].shape == inputs[1].shape and not kwargs:
            self._see_addition(*keys)
        before = [_changes(tensor) for tensor in inputs]
        output = super().on_other(func, name, args, kwargs)
        if operator.derivative != "look":
            same = [tensor for tensor, number in zip(inputs, before, strict=True) if _changes(tensor) == number]
            passed = {id(tensor) for tensor in tensors_in(output)} & {id(tensor) for tensor in same}
            self._consumed.update(key for key in keys if key[0] not in passed)
            self._note(output, same, self._now(name, output))
            self._alive += inputs
        if tail is not None and operator.name == "batch_norm" and tail.scale is None:
            scale = _scale(batch_norm_arguments(func, args, kwargs))
            self._tails[self._key(output)] = replace(tail, scale=scale)
        elif tail is not None and operator.integer == "same":
            self._tails[self._key(output)] = tail
        return output

    def finish(self, output: Any) -> dict[str, Branch]:
        """Return the branches, once the model has run."""
        self._consumed.update(self._key(tensor) for tensor in tensors_in(output))
        shared = {tail.weight for key, tail in self._tails.items() if self._consumed[key] > 1}
        shared |= {weight for weight, uses in self._uses.items() if uses > 1}
        pairs = [(tail, other) for tail, other in self._sums if tail.weight not in shared]
        return {tail.weight: Branch(other=other, scale=tail.scale) for tail, other in pairs}

    def _see_addition(self, left: Key, right: Key) -> None:
        """Note the addition for each summand that is the output of a layer younger than the other summand."""
        for a, b in ((left, right), (right, left)):
            tail, other = self._tails.get(a), self._made.get(b)
            if tail is not None and other is not None and other[0].layers < tail.layer:
                self._sums.append((tail, other))

    def _key(self, tensor: Tensor) -> Key:
        return id(tensor), self._version[id(tensor)]

    def _note(self, output: Any, same: Sequence[Tensor], step: Step) -> None:
        """Note the step that computed some tensors; the inputs `same` are returned as they were, if at all."""
        outputs = list(tensors_in(output))
        self._alive += outputs
        for place, tensor in enumerate(outputs):
            if not any(tensor is argument for argument in same):  # else `to`, or a dropout in evaluation mode
                self._version[id(tensor)] += self._key(tensor) in self._made
                self._made[self._key(tensor)] = (step, place)


def _form(output: Any) -> tuple[int, int]:
    """Return the number of axes and the size of the last one of the first tensor."""
    first = next(iter(tensors_in(output)), None)
    return (0, 0) if first is None or not first.dim() else (first.dim(), first.shape[-1])


def _changes(tensor: Tensor) -> int:
    """Return the number of in-place changes that torch counts; it counts none of tensors made for inference."""
    return 0 if tensor.is_inference() else tensor._version


def _scale(arguments: Mapping[str, Any]) -> Tensor:
    """Return the factors of a BatchNorm in evaluation mode."""
    factor, weight = (arguments["running_var"] + arguments.get("eps", 1e-5)).rsqrt(), arguments.get("weight")
    return factor if weight is None else factor * weight
