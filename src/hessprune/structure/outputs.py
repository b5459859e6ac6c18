"""Outputs of any form, compared number by number: trees of tensors, dataclasses, and objects that hold tensors."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# An output is compared at its own scale, but at no less than this share of the largest output, where rounding shows.
_LEAST_SHARE = 1e-4
_LEAST = 1e-6


def leaves_of(output: Any) -> dict[str, Any]:
    """Return the tensors and plain values of an output by their place in it.

    Example:
        >>> import torch
        >>> from hessprune.structure.outputs import leaves_of
        >>> leaves_of({"logits": torch.ones(1), "steps": (2, None)})
        {'.logits': tensor([1.]), '.steps.0': 2, '.steps.1': None}
    """
    return dict(_leaves(output, "", ()))


def _leaves(value: Any, place: str, outer: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of one value; `outer` identifies the containers around it, which it may hold itself."""
    if isinstance(value, Tensor):
        yield place, _plain(value.detach())
    elif value is None or isinstance(value, bool | int | float | complex | str):
        yield place, value
    elif id(value) not in outer:
        for key, item in _items(value):
            yield from _leaves(item, f"{place}.{key}", (*outer, id(value)))


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container or an object holds."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple | list):
        yield from enumerate(value)
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif not isinstance(value, nn.Module):
        yield from getattr(value, "__dict__", {}).items()


def _plain(tensor: Tensor) -> Tensor:
    """Return a dense tensor of real numbers or integers."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def has_numbers(output: Any) -> bool:
    """Return whether an output holds at least one number of a tensor."""
    return any(isinstance(leaf, Tensor) and leaf.numel() for leaf in leaves_of(output).values())


def is_finite_somewhere(output: Any) -> bool:
    """Return whether every tensor of an output that has numbers has a finite one."""
    tensors = [leaf for leaf in leaves_of(output).values() if isinstance(leaf, Tensor) and leaf.numel()]
    return all(bool(torch.isfinite(tensor).any()) for tensor in tensors)


def difference(expected: Any, actual: Any) -> float:
    """Return the largest difference of two outputs, each tensor relative to its largest number.

    The difference is infinite where there is nothing to compare: the outputs have another structure, other shapes or
    other places without finite numbers, a tensor has no finite number, or no tensor has any number. Integers count as
    numbers, and plain values must be equal.

    Example:
        >>> import torch
        >>> from hessprune.structure.outputs import difference
        >>> difference({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, 2.5])})
        0.25
        >>> difference(torch.tensor([torch.nan]), torch.tensor([0.0]))
        inf
    """
    left, right = leaves_of(expected), leaves_of(actual)
    if not has_numbers(expected) or [*left] != [*right]:
        return math.inf
    sizes = [_largest(leaf) for leaf in left.values() if isinstance(leaf, Tensor)]
    least = max(_LEAST_SHARE * max(sizes), _LEAST)
    return max(_leaf_difference(leaf, right[place], least) for place, leaf in left.items())


def _leaf_difference(a: Any, b: Any, least: float) -> float:
    """Return the relative difference of two leaves; `least` is the smallest scale."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        is_same = type(a) is type(b) and (a == b or (a != a and b != b))
        return 0.0 if is_same else math.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    a, b = a.cpu().double(), b.cpu().double()
    finite = torch.isfinite(a)
    is_comparable = not a.numel() or bool(finite.any())
    if not is_comparable or not torch.equal(finite, torch.isfinite(b)) or not _same_infinities(a, b):
        return math.inf
    return _largest((a - b)[finite]) / max(_largest(a), least)


def _same_infinities(a: Tensor, b: Tensor) -> bool:
    """Return whether infinities of one sign stand in the same places."""
    return all(torch.equal(a == value, b == value) for value in (math.inf, -math.inf))


def _largest(tensor: Tensor) -> float:
    """Return the largest finite magnitude."""
    values = tensor.double().abs()
    finite = values[torch.isfinite(values)]
    return float(finite.max()) if finite.numel() else 0.0
