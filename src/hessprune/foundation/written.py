"""Sizes that the source code of a forward writes down, lowered where units are gone.

`x.view(n, t, 12, -1)` and `y.reshape(n, t, c)` name numbers of heads and widths that no attribute holds. A module that
loses units of such an axis becomes a `Resized` one: the same forward, in which calls that name the written size get the
remaining one. A size that does not fit the tensor stays as it is written.
"""

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FORM = re.compile(r"(view|split|expand)\((\d+) of (\d+)\)=(\d+)")
_active = threading.local()

Sizes = Mapping[tuple[str, int, int, int], int]
"""The remaining size for kind of call, axis, number of axes, and written size."""


class Resized(nn.Module):
    """Base of modules with lowered sizes; `written_sizes` holds the size that remains of each written one."""

    written_sizes: dict[str, int]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the class by the one that it is made from."""
        return _empty, (type(self).__bases__[1],), super().__reduce_ex__(protocol)[2]


def written_size(kind: str, axis: int, rank: int, size: int, module: nn.Module | None = None) -> str:
    """Return the name of a size in calls of one kind.

    Args:
        kind: `"view"`, `"split"` or `"expand"`.
        axis: The axis that has the size.
        rank: The number of axes of the result.
        size: The size in the graph.
        module: The module whose forward makes the call; if its sizes were lowered before, the name holds the first one.

    Example:
        >>> written_size("view", 2, 4, 12)
        'view(2 of 4)=12'
    """
    for name, now in vars(module).get("written_sizes", {}).items() if module is not None else ():
        if now == size and name.startswith(f"{kind}({axis} of {rank})="):
            return name
    return f"{kind}({axis} of {rank})={size}"


def counted_value(module: nn.Module, attribute: str) -> int | None:
    """Return an integer attribute of a module, or what remains of a written size; None if there is no such integer."""
    if form := _FORM.fullmatch(attribute):
        return vars(module).get("written_sizes", {}).get(attribute, int(form[4]))
    value = vars(module).get(attribute)
    return value if type(value) is int else None


def is_written(attribute: str) -> bool:
    """Return whether the name is that of a written size."""
    return _FORM.fullmatch(attribute) is not None


def lower(module: nn.Module, attribute: str, amount: int) -> None:
    """Lower an integer attribute or a written size of a module in place."""
    value = counted_value(module, attribute)
    assert value is not None, "plans are checked before they are applied"
    if is_written(attribute):
        if not isinstance(module, Resized):
            module.__class__ = _resized(type(module))
        vars(module)["written_sizes"] = {**vars(module).get("written_sizes", {}), attribute: value - amount}
    else:
        setattr(module, attribute, value - amount)


@cache
def _resized(original: type[nn.Module]) -> type[Resized]:
    """Return a class with the forward of another one, run with lowered sizes."""

    @wraps(original.forward)
    def forward(self: Resized, *args: Any, **kwargs: Any) -> Any:
        with _Lowered(self, {_parsed(name): size for name, size in self.written_sizes.items()}):
            return original.forward(self, *args, **kwargs)

    fields = {"forward": forward, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Resized{original.__name__}", (Resized, original), fields)


def _empty(original: type[nn.Module]) -> nn.Module:
    kind = _resized(original)
    return kind.__new__(kind)


def _parsed(name: str) -> tuple[str, int, int, int]:
    form = _FORM.fullmatch(name)
    assert form is not None
    return form[1], int(form[2]), int(form[3]), int(form[4])


class _Lowered(TorchFunctionMode):
    """Lowers the sizes in the calls of one forward; of forwards inside each other only the innermost does."""

    def __init__(self, module: Resized, sizes: Sizes) -> None:
        super().__init__()
        self._module, self._sizes = module, sizes

    def __enter__(self) -> Any:
        self._outer = getattr(_active, "mode", None)
        _active.mode = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _active.mode = self._outer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        change = _CHANGES.get(getattr(func, "__name__", "")) if _active.mode is self else None
        if change is not None and args and isinstance(args[0], Tensor):
            return func(args[0], *change(self, *args, **kwargs))
        return func(*args, **kwargs)

    def remaining(self, kind: str, axis: int, rank: int, size: Any) -> Any:
        """Return what remains of a size; symbols of an exporter are no written sizes."""
        key = kind, axis, rank, size
        if type(size) is not int or key not in self._sizes:
            return size
        if (named := getattr(_active, "named", None)) is not None:
            named.add((id(self._module), written_size(*key)))
        return self._sizes[key]


@contextmanager
def noting_sizes() -> Iterator[set[tuple[int, str]]]:
    """Collect the lowered sizes that forwards in this block name, each with the `id` of the module."""
    before, _active.named = getattr(_active, "named", None), set()
    try:
        yield _active.named
    finally:
        _active.named = before


def _viewed(lowered: _Lowered, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the shape for `view` and `reshape`."""
    given = _shape(args, kwargs)
    if given is None:
        return (*args, *kwargs.values())
    shape = _remaining(lowered, "view", given)
    known = math.prod(size for size in shape if not _is_open(size))
    fits = x.numel() % max(known, 1) == 0 if any(map(_is_open, shape)) else known == x.numel()
    return (shape if fits else given,)


def _unflattened(lowered: _Lowered, x: Tensor, dim: int, parts: Sequence[int]) -> tuple[Any, ...]:
    """Return axis and sizes for `unflatten`."""
    dim %= x.dim()
    shape = _remaining(lowered, "view", [*x.shape[:dim], *parts, *x.shape[dim + 1 :]])[dim:][: len(parts)]
    known = math.prod(size for size in shape if not _is_open(size))
    fits = x.shape[dim] % max(known, 1) == 0 if any(map(_is_open, shape)) else known == x.shape[dim]
    return dim, shape if fits else parts


def _expanded(lowered: _Lowered, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the shape for `expand`."""
    given = _shape(args, kwargs) or []
    shape = _remaining(lowered, "expand", given)
    own = [*[1] * (len(shape) - x.dim()), *x.shape]
    fits = all(_is_open(size) or here in (1, size) for size, here in zip(shape, own, strict=True))
    return (shape if fits else given,)


def _split(lowered: _Lowered, x: Tensor, parts: Any, dim: int = 0) -> tuple[Any, ...]:
    """Return sizes and axis for `split`."""
    dim %= x.dim()
    many = [parts] if type(parts) is int else [*parts]
    new = [lowered.remaining("split", dim, x.dim(), size) for size in many]
    if type(parts) is int:
        return (new[0] if x.shape[dim] % new[0] == 0 else parts), dim
    return (new if sum(new) == x.shape[dim] else parts), dim


_CHANGES = {
    "view": _viewed, "reshape": _viewed, "unflatten": _unflattened, "expand": _expanded, "broadcast_to": _expanded,
    "split": _split, "split_with_sizes": _split,
}  # fmt: skip


def _shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Return the sizes that a call names; None for a view of another type."""
    first = (*args, *kwargs.values())[:1]
    if not first or isinstance(first[0], torch.dtype):
        return None
    return [*first[0]] if isinstance(first[0], tuple | list) else [*args]


def _remaining(lowered: _Lowered, kind: str, shape: list[Any]) -> list[Any]:
    """Replace written sizes by the remaining ones."""
    return [lowered.remaining(kind, axis, len(shape), size) for axis, size in enumerate(shape)]


def _is_open(size: Any) -> bool:
    return type(size) is int and size == -1
