"""Branches: layers whose output is added to something that was computed before they ran.

In a residual network these are the last layers of the blocks. Whatever was lost earlier arrives at the addition by the
other way, so such a layer is the first that can make up for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import sample_rows, tensors_in
from hessprune.layers.recording import CallMode, slow_attention, weight_names
from hessprune.operators.functions import LOOK_ONLY
from hessprune.operators.maps import Arguments, Call, SampleLayout

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
SAME = {"dropout", "dropout1d", "dropout2d", "dropout3d"}
"""What returns its input in evaluation mode."""

Place = tuple[int, int]
"""A tensor by the step that computed it, and its place among the tensors which that step returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """What one layer's output is added to."""

    other: Place
    scale: Tensor | None
    """Factors `γ / √(σ² + ε)` of a BatchNorm between the layer and the addition, `(O,)`."""


class StepMode(CallMode):
    """Counts the functions that a model calls, and keeps some of their results until they are asked for."""

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
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self._step = 0

    def on_layer(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        """Handle a layer, in place of `on_call`."""
        return super().on_call(name, call, arguments)

    def on_call(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        """Count a layer."""
        output = self.on_layer(name, call, arguments)
        self._count(output)
        return output

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Count another function."""
        output = super().on_other(func, name, args, kwargs)
        self._count(output)
        return output

    def take_other(self, name: str) -> Tensor:
        """Return what the output of the layer `name` will be added to; only once."""
        step, place = self.branches[name].other
        found = self._kept[step][place]
        self._open[step] -= 1
        if not self._open[step]:
            del self._kept[step]
        return found

    def _count(self, output: Any) -> None:
        self._step += 1
        if self._open[self._step]:
            self._kept[self._step] = tuple(tensors_in(output))


def find_branches(model: nn.Module, inputs: Any) -> dict[str, Branch]:
    """Run `model` in evaluation mode on one sample; return the branches by weight.

    Weights count that are used once, and whose output goes nowhere but through a BatchNorm, if any, into the addition.
    """
    recorder, sample = _BranchRecorder(model), sample_rows(inputs, torch.tensor([0]))
    with evaluation_mode(model), torch.no_grad(), slow_attention(), recorder:
        output = call_model(model, sample)
    return recorder.found(output)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tail:
    """A tensor that is a layer's output, perhaps normalised."""

    weight: str
    step: int  # at which the layer ran
    scale: Tensor | None = None


Key = tuple[int, int]
"""A tensor and how often it was changed in place: then it counts as a new one."""


class _BranchRecorder(StepMode):
    """Follows layers' outputs to additions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 1, {})
        self._alive: list[Any] = []  # ids must not be reused while we compare them
        self._version: Counter[int] = Counter()
        self._made: dict[Key, Place] = {}
        self._tails: dict[Key, _Tail] = {}
        self._consumed: Counter[Key] = Counter()
        self._uses: Counter[str] = Counter()
        self._sums: list[tuple[_Tail, Place]] = []

    def on_layer(self, name: str, call: Call, arguments: Arguments) -> Tensor:
        output = call.forward(*arguments)
        self._uses[name] += 1
        self._consumed[self._key(arguments[0])] += 1
        self._note(output, arguments[:1], self._step + 1)
        self._tails[self._key(output)] = _Tail(weight=name, step=self._step + 1)
        return output

    def on_other(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        inputs = list(tensors_in([*args, *kwargs.values()]))
        keys = [self._key(tensor) for tensor in inputs]
        tail = self._tails.get(keys[0]) if keys else None
        if name in ADDITIONS and len(inputs) == 2 and inputs[0].shape == inputs[1].shape and not kwargs:
            self._see_addition(*keys)
        output = super().on_other(func, name, args, kwargs)
        if name not in LOOK_ONLY:
            self._consumed.update(keys)
            self._note(output, inputs, self._step)
        if tail is not None and name == "batch_norm" and tail.scale is None:
            self._tails[self._key(output)] = replace(tail, scale=_scale(*args, **kwargs))
        elif tail is not None and name in SAME:
            self._tails[self._key(output)] = tail
        return output

    def found(self, output: Any) -> dict[str, Branch]:
        """Return the branches, once the model has run."""
        self._consumed.update(self._key(tensor) for tensor in tensors_in(output))
        shared = {tail.weight for key, tail in self._tails.items() if self._consumed[key] > 1}
        shared |= {weight for weight, uses in self._uses.items() if uses > 1}
        pairs = [(tail, other) for tail, other in self._sums if tail.weight not in shared]
        return {tail.weight: Branch(other=other, scale=tail.scale) for tail, other in pairs}

    def _see_addition(self, left: Key, right: Key) -> None:
        """Note the addition for each summand that is a layer's output, if the other was there before the layer ran."""
        for a, b in ((left, right), (right, left)):
            tail, other = self._tails.get(a), self._made.get(b)
            if tail is not None and other is not None and other[0] < tail.step:
                self._sums.append((tail, other))

    def _key(self, tensor: Tensor) -> Key:
        return id(tensor), self._version[id(tensor)]

    def _note(self, output: Any, inputs: Sequence[Tensor], step: int) -> None:
        """Note where tensors come from."""
        outputs = list(tensors_in(output))
        self._alive += [*inputs, *outputs]
        for place, tensor in enumerate(outputs):
            self._version[id(tensor)] += any(tensor is given for given in inputs)
            self._made[self._key(tensor)] = (step, place)


def _scale(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:  # noqa: ARG001
    """Return the factors of a BatchNorm in evaluation mode."""
    eps = options.get("eps", rest[3] if len(rest) > 3 else 1e-5)
    factor = (var + eps).rsqrt()
    return factor if weight is None else factor * weight
