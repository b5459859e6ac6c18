"""The inputs of a graph on labels: parameters with labelled axes, and integers with their values."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Role = Literal["producer", "consumer", "follower"]
"""A layer that emits units, a layer that reads them, or state with one number per unit."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A parameter or floating-point buffer under its first name, or a view that only moves axes or parts of them."""

    name: str
    shape: torch.Size
    dims: tuple[int | None, ...]
    """For each axis of the view the axis of the parameter, or None for an axis of size 1."""
    starts: tuple[int, ...]
    """For each axis of the view the first position on the axis of the parameter."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Leaf":
        """Return the leaf of a whole tensor."""
        return cls(name, tensor.shape, tuple(range(tensor.dim())), (0,) * tensor.dim())

    def moved(self, operator: Callable[[Tensor], Tensor]) -> "Leaf":
        """Apply an operator that only permutes axes; the strides of a marked tensor identify the axes."""
        marked = operator(torch.empty_strided(self.shape, tuple(range(1, len(self.shape) + 1)), device="meta"))
        order = [stride - 1 for stride in marked.stride()]
        return Leaf(
            self.name, marked.shape, tuple(self.dims[at] for at in order), tuple(self.starts[at] for at in order)
        )

    def reshaped(self, shape: torch.Size) -> "Leaf | None":
        """Insert or drop axes of size 1; return None if the shape needs more than that."""
        long = [at for at, size in enumerate(self.shape) if size > 1]
        if [self.shape[at] for at in long] != [size for size in shape if size > 1]:
            return None
        axes = iter(long)
        order = [next(axes) if size > 1 else None for size in shape]
        dims = tuple(None if at is None else self.dims[at] for at in order)
        return Leaf(self.name, shape, dims, tuple(0 if at is None else self.starts[at] for at in order))

    def part(self, dim: int, start: int, size: int) -> "Leaf":
        """Take `size` positions of one axis, from `start` on."""
        shape, starts = [*self.shape], [*self.starts]
        shape[dim], starts[dim] = size, starts[dim] + start
        return Leaf(self.name, torch.Size(shape), self.dims, tuple(starts))


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor with known numbers and no labels: an integer buffer, or a constant used as an index."""

    tensor: Tensor


@dataclass(kw_only=True, slots=True)
class LiteralUse:
    """An integer attribute of a module that counts the labels of an axis."""

    module: str
    attribute: str
    labels: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeUse:
    """A size that a forward may have written down, with the labels of its axis."""

    module: str
    name: str
    """See `WrittenSize`."""
    labels: Tensor
    """One label for each index; empty if the axis holds the batch, too, so that its size varies."""


@dataclass(slots=True)
class Axis:
    """The labels of one parameter axis; `roles` holds its uses in the graph."""

    labels: Tensor
    roles: set[Role] = field(default_factory=set)
