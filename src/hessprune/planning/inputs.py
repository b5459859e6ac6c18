"""Example inputs as a description: shapes and dtypes that fit in JSON and can be made again, filled from a seed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Shapes, dtypes and integer ranges of a model's inputs, as nested JSON values."""

    tree: Any

    def example(self, seed: int = 0) -> Any:
        """Return inputs of this description: normal numbers, or integers up to the largest seen."""
        return _build(self.tree, torch.Generator().manual_seed(seed))


def describe_inputs(inputs: Any) -> InputSpec:
    """Describe a tensor, tuple or dict of inputs.

    Example:
        >>> describe_inputs(torch.zeros(1, 3)).example().shape
        torch.Size([1, 3])
    """
    return InputSpec(tree=_describe(inputs))


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        item = {"kind": "tensor", "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if not value.is_floating_point() and value.numel():
            item["high"] = int(value.max()) + 1
        return item
    if isinstance(value, dict):
        return {"kind": "dict", "items": {key: _describe(item) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        return {"kind": "tuple", "items": [_describe(item) for item in value]}
    return {"kind": "value", "value": value}


def _build(item: Any, generator: torch.Generator) -> Any:
    if item["kind"] == "tensor":
        dtype = getattr(torch, item["dtype"])
        if dtype.is_floating_point:
            return torch.randn(item["shape"], generator=generator).to(dtype)
        return torch.randint(0, max(item.get("high", 1), 1), item["shape"], generator=generator).to(dtype)
    if item["kind"] == "dict":
        return {key: _build(value, generator) for key, value in item["items"].items()}
    if item["kind"] == "tuple":
        return tuple(_build(value, generator) for value in item["items"])
    return item["value"]
