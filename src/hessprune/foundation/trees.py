"""Trees of tensors: tensors in nested tuples, lists, dicts and dataclasses, batch first."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nested tuple, list, dict or dataclass, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors_in(value)
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from tensors_in(getattr(tree, field.name))


def rebuilt(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Return a tree of the same kind with `function` applied to every tensor, in the order of `tensors_in`.

    Example:
        >>> rebuilt({"a": (torch.ones(2), 3)}, lambda tensor: tensor.tolist())
        {'a': ([1.0, 1.0], 3)}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        new = {key: rebuilt(value, function) for key, value in tree.items()}
        return new if type(tree) is dict else _filled(tree, new)
    if isinstance(tree, tuple | list):
        values = [rebuilt(value, function) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if is_dataclass(tree) and not isinstance(tree, type):
        return _filled(tree, {field.name: rebuilt(getattr(tree, field.name), function) for field in fields(tree)})
    return tree


def _filled(tree: Any, new: Mapping[Any, Any]) -> Any:
    """Return a copy of a mapping or a dataclass with new values, frozen ones included."""
    other = copy.copy(tree)
    for key, value in new.items():
        if isinstance(tree, Mapping):
            other[key] = value
        else:
            object.__setattr__(other, key, value)
    return other


def leading_size(inputs: Any) -> int:
    """Return the batch size of `inputs`: a tensor, or a (nested) tuple or dict of tensors."""
    first = next(iter(tensors_in(inputs)), None)
    return 0 if first is None or first.dim() == 0 else first.shape[0]


def describe(tree: Any) -> str:
    """Return dtype and shape of every tensor, short enough for a message.

    Example:
        >>> describe((torch.zeros(2, 3), {"mask": torch.ones(2)}))
        "(float32 (2, 3), {'mask': float32 (2,)})"
    """
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(describe(value) for value in tree) + ")"
    return type(tree).__name__


def describe_shapes(tree: Any) -> str:
    """Return dtype and shape of every tensor behind the samples, equal for batches that can be joined.

    Example:
        >>> describe_shapes(torch.zeros(2, 3)) == describe_shapes(torch.zeros(5, 3))
        True
    """
    return describe(rebuilt(tree, lambda tensor: tensor[:0]))


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def to_device(tree: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a tree of tensors; `dtype` applies to floating-point tensors only."""
    return rebuilt(tree, lambda tensor: usable(tensor).to(device, dtype if tensor.is_floating_point() else None))


def sample_rows(tree: Any, rows: Tensor) -> Any:
    """Return the samples `rows` of a tree of tensors, batch first."""
    return rebuilt(tree, lambda tensor: tensor[rows.to(tensor.device)])


def join_inputs(parts: Sequence[Any]) -> Any:
    """Concatenate batches of nested tuples or dicts of tensors along the samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: join_inputs([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(join_inputs(items) for items in zip(*parts, strict=True))
    return first
