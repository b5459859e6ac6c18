"""Example inputs as a description in JSON: shapes and dtypes, from which inputs can be made again."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, CheckpointError
from hessprune.foundation.formatting import shown
from hessprune.foundation.trees import rebuilt, tensors_in

LARGEST = 2**30
"""Elements of one input: more are a damaged file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Shapes, dtypes and integer ranges of a model's inputs, as nested JSON values."""

    tree: Any

    def example(self, seed: int = 0) -> Any:
        """Return inputs of this description: normal numbers, or integers up to the largest seen.

        Raises:
            ArgumentError: Inputs of a class of the user's are described, but not made.
        """
        return _build(self.tree, torch.Generator().manual_seed(seed))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors, in order."""
        return tuple(tuple(item["shape"]) for item in _tensors(self.tree))

    def like(self, inputs: Any) -> Any:
        """Return the given inputs if they have the described shapes; others of these shapes if not."""
        given = tuple(tuple(tensor.shape) for tensor in tensors_in(inputs))
        if self.shapes == given:
            return inputs
        if len(self.shapes) != len(given):
            return self.example()
        generator, waiting = torch.Generator().manual_seed(0), _tensors(self.tree)
        return rebuilt(inputs, lambda _: _build(next(waiting), generator))


def describe_inputs(inputs: Any) -> InputSpec:
    """Describe a tensor, tuple, dict or dataclass of inputs.

    Example:
        >>> import torch
        >>> from hessprune.planning.inputs import describe_inputs
        >>> describe_inputs(torch.zeros(1, 3)).example().shape
        torch.Size([1, 3])
    """
    return InputSpec(tree=_describe(inputs))


def check_tree(tree: Any) -> Any:
    """Return a description that was read from JSON, after a check of its kinds, shapes and dtypes.

    Raises:
        CheckpointError: It describes no inputs.
    """
    kind = tree.get("kind") if isinstance(tree, dict) else None
    if kind == "tensor":
        shape, dtype = tree["shape"], getattr(torch, str(tree["dtype"]), None)
        is_shape = isinstance(shape, list) and all(type(size) is int and 0 <= size <= LARGEST for size in shape)
        high = tree.get("high", 1)
        is_high = type(high) is int and -(2**62) < high < 2**62
        if is_shape and is_high and len(shape) <= 64 and math.prod(shape) <= LARGEST and _can_be_drawn(dtype):
            return tree
    elif kind in ("dict", "tuple", "object") and isinstance(tree["items"], list if kind == "tuple" else dict):
        for item in tree["items"] if kind == "tuple" else tree["items"].values():
            check_tree(item)
        return tree
    elif kind == "value":
        return tree
    raise CheckpointError(f"`inputs` of the plan must describe tensors, got {shown(tree)}. Save the plan again.")


def _can_be_drawn(dtype: object) -> bool:
    """Return whether tensors of a dtype can be made from random numbers."""
    try:
        return isinstance(dtype, torch.dtype) and bool(torch.zeros(1, device="cpu").to(dtype).numel())
    except (RuntimeError, TypeError):  # bits, quantised numbers
        return False


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        item = {"kind": "tensor", "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if not value.is_floating_point() and value.numel():
            item["high"] = int(value.max()) + 1
        return item
    if isinstance(value, Mapping):
        return {"kind": "dict", "items": {key: _describe(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return {"kind": "tuple", "items": [_describe(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"kind": "value", "value": value}
    names = [field.name for field in fields(value)] if is_dataclass(value) else []
    return {
        "kind": "object",
        "type": type(value).__name__,
        "items": {name: _describe(getattr(value, name)) for name in names},
    }


def _tensors(item: Any) -> Iterator[Any]:
    """Yield the descriptions of all tensors, in the order of `tensors_in`."""
    if item["kind"] == "tensor":
        yield item
    elif item["kind"] != "value":
        for value in item["items"] if item["kind"] == "tuple" else item["items"].values():
            yield from _tensors(value)


def _build(item: Any, generator: torch.Generator) -> Any:
    if item["kind"] == "tensor":
        dtype = getattr(torch, item["dtype"])
        if dtype.is_floating_point:
            return torch.randn(item["shape"], generator=generator, device="cpu").to(dtype)
        return torch.randint(0, max(item.get("high", 1), 1), item["shape"], generator=generator, device="cpu").to(dtype)
    if item["kind"] == "dict":
        return {key: _build(value, generator) for key, value in item["items"].items()}
    if item["kind"] == "tuple":
        return tuple(_build(value, generator) for value in item["items"])
    if item["kind"] == "object":
        raise ArgumentError(
            f"`example_inputs` must be given where a plan describes them as {shown(item.get('type'))}, a class of "
            "yours, got None. Pass a batch of them; run one through a lazy model in the factory of hp.load."
        )
    return item["value"]
