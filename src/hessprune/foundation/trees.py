"""Trees of tensors: tensors in nested tuples, lists, dicts and dataclasses, batch first."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

MOST = 4
"""Entries of a list without tensors that a message spells out."""


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
    """Return dtype and shape of every tensor, short enough for a message; of a long list without any, its length.

    Example:
        >>> describe((torch.zeros(2, 3), {"mask": torch.ones(2), "words": list(range(50))}))
        "(float32 (2, 3), {'mask': float32 (2,), 'words': list of 50})"
    """
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        if len(tree) > MOST and not any(tensors_in(tree)):
            return f"{type(tree).__name__} of {len(tree)}"
        return "(" + ", ".join(describe(value) for value in tree) + ")"
    return type(tree).__name__


def describe_shapes(tree: Any) -> str:
    """Return dtype and shape of every tensor behind the samples, equal for batches that can be joined.

    Example:
        >>> describe_shapes(torch.zeros(2, 3)) == describe_shapes(torch.zeros(5, 3))
        True
    """
    size = leading_size(tree)
    return describe(rebuilt(tree, lambda tensor: tensor[:0] if holds_samples(tensor, size) else tensor))


def holds_samples(tensor: Tensor, size: int) -> bool:
    """Return whether a tensor beside `size` samples holds an entry for each of them; others belong to all samples."""
    return tensor.dim() > 0 and len(tensor) == size


def shared_in(tree: Any) -> list[Tensor]:
    """Return the tensors that belong to all samples, such as a table beside a batch.

    Example:
        >>> shared_in((torch.zeros(5, 2), torch.ones(1, 3)))
        [tensor([[1., 1., 1.]])]
    """
    size = leading_size(tree)
    return [tensor for tensor in tensors_in(tree) if not holds_samples(tensor, size)]


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def to_device(tree: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a tree of tensors; `dtype` applies to floating-point tensors only."""
    return rebuilt(tree, lambda tensor: usable(tensor).to(device, dtype if tensor.is_floating_point() else None))


def sample_rows(tree: Any, rows: Tensor) -> Any:
    """Return the samples `rows` of a tree of tensors, batch first; tensors that belong to all samples stay whole.

    Example:
        >>> x, table = sample_rows((torch.arange(5), torch.zeros(1, 3)), torch.tensor([0, 4]))
        >>> x.tolist(), table.shape
        ([0, 4], torch.Size([1, 3]))
    """
    size = leading_size(tree)
    return rebuilt(tree, lambda tensor: tensor[rows.to(tensor.device)] if holds_samples(tensor, size) else tensor)


def join_inputs(parts: Sequence[Any]) -> Any:
    """Concatenate batches of trees of tensors along the samples; what belongs to all samples is that of the first."""
    sizes = [leading_size(part) for part in parts]
    joined = (
        torch.cat(tensors) if all(map(holds_samples, tensors, sizes)) else tensors[0]
        for tensors in zip(*(list(tensors_in(part)) for part in parts), strict=True)
    )
    return rebuilt(parts[0], lambda _: next(joined))
