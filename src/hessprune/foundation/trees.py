"""Trees of tensors: tensors in nested tuples, lists and dicts, batch first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nested tuple, list or dict, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from tensors_in(value)


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


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def to_device(tree: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a nested tuple or dict of tensors; `dtype` applies to floating-point tensors only."""
    if isinstance(tree, Tensor):
        return usable(tree).to(device, dtype if dtype and tree.is_floating_point() else None)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to_device(value, device, dtype) for value in tree)
    return tree


def sample_rows(tree: Any, rows: Tensor) -> Any:
    """Return the samples `rows` of a nested tuple or dict of tensors, batch first."""
    if isinstance(tree, Tensor):
        return tree[rows.to(tree.device)]
    if isinstance(tree, Mapping):
        return {key: sample_rows(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(sample_rows(value, rows) for value in tree)
    return tree


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
