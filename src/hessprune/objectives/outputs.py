"""The outputs of a model: tensors with names in any tree, and one tensor of all that count, samples first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.checks import nearest
from hessprune.foundation.trees import describe, rebuilt

ALONE = "output"
"""The name of an output that is a single tensor."""
LEFT_OUT = frozenset({
    "past_key_values", "cache_params", "mems", "hidden_states", "attentions", "cross_attentions", "loss",
    "encoder_hidden_states", "encoder_attentions", "decoder_hidden_states", "decoder_attentions",
})  # fmt: skip
"""Outputs that repeat what a model did on the way."""
INSIDE = "last_hidden_state"
"""Ends the names of outputs that are left out beside logits."""


def named_outputs(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of an output with its name, such as `logits`, `0` or `head.boxes`.

    Example:
        >>> import torch
        >>> [name for name, _ in named_outputs({"out": torch.zeros(1), "aux": (torch.zeros(1), torch.zeros(1))})]
        ['out', 'aux.0', 'aux.1']
    """
    if isinstance(output, Tensor):
        yield name or ALONE, output
        return
    for key, value in _children(output):
        yield from named_outputs(value, f"{name}.{key}" if name else key)


def _children(tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        yield from ((str(key), value) for key, value in tree.items())
    elif isinstance(tree, tuple | list):
        names = getattr(tree, "_fields", None)  # of a named tuple
        yield from zip(names or map(str, range(len(tree))), tree, strict=True)
    elif is_dataclass(tree) and not isinstance(tree, type):
        yield from ((field.name, getattr(tree, field.name)) for field in fields(tree))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An output tensor, and the axis of its samples."""

    name: str
    axis: int

    def by_sample(self, tensor: Tensor, samples: int) -> Tensor:
        """Return the tensor with samples first; several rows of a sample become an axis of their own."""
        tensor = tensor.movedim(self.axis, 0)
        return tensor if len(tensor) == samples else tensor.unflatten(0, (samples, -1))

    def back(self, rows: Tensor, dim: int) -> Tensor:
        """Return rows of samples in the form that the model gives them, with `dim` axes."""
        return (rows.flatten(0, 1) if rows.dim() > dim else rows).movedim(0, self.axis)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The output tensors that an objective reads, from a model whose samples do not influence each other."""

    places: tuple[Place, ...]
    """Of those that count."""
    sampled: tuple[Place, ...] = ()
    """Of all tensors with an axis of samples, integers included."""

    @classmethod
    def find(cls, pair: Any, alone: Any) -> "Outputs":
        """Find floating-point tensors with an axis of samples, from the outputs for two samples and for one."""
        one = dict(named_outputs(alone))
        both = {name: tensor for name, tensor in named_outputs(pair) if name in one}
        axes = {name: _axis(tensor, one[name]) for name, tensor in both.items()}
        sampled = tuple(Place(name=name, axis=axis) for name, axis in axes.items() if axis is not None)
        places = tuple(place for place in sampled if both[place.name].is_floating_point())
        if not places:
            raise UnsupportedModelError(
                "the model must return a floating-point tensor with an axis of samples, got "
                f"{describe(alone)} for one sample and {describe(pair)} for two. Return outputs for every sample; of "
                "inputs, the first axis is that of the samples."
            )
        return cls(places=places, sampled=sampled)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(place.name for place in self.places)

    def counting(self) -> "Outputs":
        """Leave out caches, hidden states and attention maps, unless nothing else is there."""
        names = [name for name in self.names if not LEFT_OUT.intersection(name.split("."))]
        if any(name.endswith("logits") for name in names):
            names = [name for name in names if not name.endswith(INSIDE)]
        return self.only(names) if names else self

    def only(self, names: Sequence[str]) -> "Outputs":
        """Return the outputs of some names.

        Raises:
            ArgumentError: There is no output of such a name.
        """
        for name in names:
            if name not in self.names:
                listed = ", ".join(map(repr, self.names))
                raise ArgumentError(
                    f"`outputs` must name outputs of the model, some of {listed}, got {name!r}."
                    f"{nearest(name, self.names)}"
                )
        return replace(self, places=tuple(place for place in self.places if place.name in names))

    def parts(self, output: Any, samples: int) -> list[Tensor]:
        """Return the tensors, samples first."""
        tensors = dict(named_outputs(output))
        return [place.by_sample(tensors[place.name], samples) for place in self.places]

    def read(self, output: Any, samples: int) -> Tensor:
        """Return the only tensor, samples first, or several side by side as `(N, D)`."""
        return joined(self.parts(output, samples))

    def written(self, values: Tensor, template: Any, samples: int) -> Any:
        """Return the template with the tensors that `read` gave, or others in their place."""
        tensors = dict(named_outputs(template))
        shapes = [place.by_sample(tensors[place.name], samples).shape for place in self.places]
        parts = separated(values, shapes)
        pairs = zip(self.places, parts, strict=True)
        return with_tensors(
            template, {place.name: place.back(part, tensors[place.name].dim()) for place, part in pairs}
        )

    def merged(self, outputs: Sequence[tuple[Any, int]]) -> Any:
        """Return the output of a batch from the outputs of its chunks, each with its number of samples."""
        if len(outputs) == 1:
            return outputs[0][0]
        chunks = [(dict(named_outputs(output)), samples) for output, samples in outputs]
        new = {}
        for place in self.sampled:
            rows = torch.cat([place.by_sample(tensors[place.name], samples) for tensors, samples in chunks])
            new[place.name] = place.back(rows, chunks[0][0][place.name].dim())
        return with_tensors(outputs[0][0], new)


def with_tensors(output: Any, new: Mapping[str, Tensor]) -> Any:
    """Return an output with some tensors replaced, by name."""
    names = iter([name for name, _ in named_outputs(output)])
    return rebuilt(output, lambda tensor: new.get(next(names), tensor))


def targets_of(targets: Any, name: str) -> Any:
    """Return the targets of one output: those of its name in a dict, those at its place in a tuple, or all."""
    if isinstance(targets, Mapping):
        return targets.get(name)
    if isinstance(targets, tuple | list) and name.isdigit() and int(name) < len(targets):
        inner = targets[int(name)]
        return inner if isinstance(inner, Tensor) else targets
    return targets


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the only tensor, or several side by side as `(N, D)`."""
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def separated(values: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo `joined`, for tensors of these shapes behind the samples' axis."""
    if len(shapes) == 1:
        return [values]
    parts = values.split([shape[1:].numel() for shape in shapes], 1)
    return [part.reshape(len(values), *shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


def _axis(pair: Tensor, alone: Tensor) -> int | None:
    """Return the only axis that is twice as long for two samples as for one."""
    if pair.dim() != alone.dim():
        return None
    axes = [axis for axis, (two, one) in enumerate(zip(pair.shape, alone.shape, strict=True)) if two != one]
    return axes[0] if len(axes) == 1 and pair.shape[axes[0]] == 2 * alone.shape[axes[0]] else None
