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
    """A parameter or floating-point buffer under its first name, or a view of it that only moves whole axes."""

    name: str
    shape: torch.Size
    dims: tuple[int | None, ...]
    """For each axis of the view the axis of the parameter, or None for an axis of size 1."""

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Leaf":
        """Return the leaf of a whole tensor."""
        return cls(name, tensor.shape, tuple(range(tensor.dim())))

    def moved(self, operator: Callable[[Tensor], Tensor]) -> "Leaf":
        """Apply an operator that only permutes axes; the strides of a marked tensor identify the axes."""
        marked = operator(torch.empty_strided(self.shape, tuple(range(1, len(self.shape) + 1)), device="meta"))
        return Leaf(self.name, marked.shape, tuple(self.dims[stride - 1] for stride in marked.stride()))

    def reshaped(self, shape: torch.Size) -> "Leaf | None":
        """Insert or drop axes of size 1; return None if the shape needs more than that."""
        long = [(size, dim) for size, dim in zip(self.shape, self.dims, strict=True) if size > 1]
        if [size for size, _ in long] != [size for size in shape if size > 1]:
            return None
        axes = iter(long)
        return Leaf(self.name, shape, tuple(next(axes)[1] if size > 1 else None for size in shape))


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


@dataclass(slots=True)
class Axis:
    """The labels of one parameter axis; `roles` holds its uses in the graph."""

    labels: Tensor
    roles: set[Role] = field(default_factory=set)
