"""Sizes that the source code of a forward writes down, lowered where units are gone.

`x.view(n, t, 12, -1)` and `y.reshape(n, t, c)` name numbers of heads and widths that no attribute holds. A module that
loses units of such an axis becomes a `Resized` one: the same forward, in which calls that name the written size get the
remaining one. A size that does not fit the tensor stays as it is written.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hessprune.foundation.gathering import GATHERING, gathered, share_singly
from hessprune.foundation.views import fitting_view
from hessprune.foundation.written_size import WrittenSize

_active = threading.local()


class Resized(nn.Module):
    """Base of modules with lowered sizes; `written_sizes` holds the size that remains of each written one."""

    written_sizes: dict[str, int]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the class by the one that it is made from."""
        return _empty, (type(self).__bases__[1],), super().__reduce_ex__(protocol)[2]


def counted_value(module: nn.Module, attribute: str) -> int | None:
    """Return an integer attribute of a module, or what remains of a written size; None if there is no such integer."""
    if written := WrittenSize.parse(attribute):
        return vars(module).get("written_sizes", {}).get(attribute, written.size)
    value = vars(module).get(attribute)
    return value if type(value) is int else None


def is_written(attribute: str) -> bool:
    """Return whether the name is that of a written size."""
    return WrittenSize.parse(attribute) is not None


def lower(module: nn.Module, attribute: str, amount: int) -> None:
    """Lower an integer attribute or a written size of a module in place."""
    value = counted_value(module, attribute)
    assert value is not None, "plans are checked before they are applied"
    if is_written(attribute):
        if not isinstance(module, Resized):
            module.__class__ = _resized(type(module))
        vars(module)["written_sizes"] = {**vars(module).get("written_sizes", {}), attribute: value - amount}
        if attribute.startswith("queries"):
            share_singly(module)
    else:
        setattr(module, attribute, value - amount)


def unlower(module: Resized) -> None:
    """Give a module its own class back, in place, where its source code names no size that fell any more."""
    module.__class__ = type(module).__bases__[1]
    del vars(module)["written_sizes"]


@cache
def _resized(original: type[nn.Module]) -> type[Resized]:
    """Return a class with the forward of another one, run with lowered sizes."""

    @wraps(original.forward)
    def forward(self: Resized, *args: Any, **kwargs: Any) -> Any:
        with _Lowered(self):
            return original.forward(self, *args, **kwargs)

    fields = {"forward": forward, "__module__": original.__module__, "__doc__": original.__doc__}
    return type(f"Resized{original.__name__}", (Resized, original), fields)


def _empty(original: type[nn.Module]) -> nn.Module:
    kind = _resized(original)
    return kind.__new__(kind)


class _Lowered(TorchFunctionMode):
    """Lowers the sizes in the calls of one forward; of forwards inside each other only the innermost does."""

    def __init__(self, module: Resized) -> None:
        super().__init__()
        self._module = module
        self._sizes = [(_read(name), size) for name, size in module.written_sizes.items()]
        self._scales = [each for each in self._sizes if each[0].kind == "scale"]
        self._queries = sorted((each for each in self._sizes if each[0].kind == "queries"), key=lambda q: q[0].axis)

    def __enter__(self) -> Any:
        self._outer = getattr(_active, "mode", None)
        _active.mode = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _active.mode = self._outer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "") if _active.mode is self else ""
        for written, _ in self._scales if name == "scaled_dot_product_attention" else ():
            if kwargs.get("scale") is None:
                kwargs = {**kwargs, "scale": written.size**-0.5}
                self.note(written)
        if self._queries and name in GATHERING:
            for written, _ in self._queries:
                self.note(written)
            return gathered(func, name, args, kwargs, [left for _, left in self._queries])
        change = _CHANGES.get(name)
        if change is not None and args and isinstance(args[0], Tensor):
            return func(args[0], *change(self, *args, **kwargs))
        return func(*args, **kwargs)

    def at(self, kind: str, shape: Sequence[Any]) -> list[tuple[WrittenSize, int]]:
        """Return the sizes that a call names, each with what remains; symbols of an exporter are no written sizes."""
        named = [(axis, size) for axis, size in enumerate(shape) if type(size) is int]
        return [(w, left) for axis, size in named for w, left in self.of_kind(kind, axis, len(shape)) if w.size == size]

    def of_kind(self, kind: str, axis: int, rank: int) -> list[tuple[WrittenSize, int]]:
        """Return all sizes of an axis, each with what remains."""
        return [(w, left) for w, left in self._sizes if (w.kind, w.axis, w.rank) == (kind, axis, rank)]

    def widths(self, rank: int) -> Iterator[WrittenSize]:
        """Yield the sizes that stay although they are computed from the embedding."""
        yield from (written for written, _ in self._sizes if (written.kind, written.rank) == ("width", rank))

    def note(self, written: WrittenSize) -> None:
        """Note that a lowered size took the place of a written one."""
        if (named := getattr(_active, "named", None)) is not None:
            named.add((id(self._module), str(written)))


def _read(name: str) -> WrittenSize:
    written = WrittenSize.parse(name)
    assert written is not None
    return written


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
    return (*args, *kwargs.values()) if given is None else (fitting_view(lowered, x, given),)


def _unflattened(lowered: _Lowered, x: Tensor, dim: int, parts: Sequence[int]) -> tuple[Any, ...]:
    """Return axis and sizes for `unflatten`."""
    dim %= x.dim()
    shape = fitting_view(lowered, x, [*x.shape[:dim], *parts, *x.shape[dim + 1 :]])
    return dim, shape[dim:][: len(parts)]


def _expanded(lowered: _Lowered, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the shape for `expand`."""
    shape = _shape(args, kwargs) or []
    own = [*[1] * (len(shape) - x.dim()), *x.shape]
    for written, left in lowered.at("expand", shape):
        if own[written.axis] in (1, left):
            shape[written.axis] = left
            lowered.note(written)
    return (shape,)


def _split(lowered: _Lowered, x: Tensor, parts: Any, dim: int = 0) -> tuple[Any, ...]:
    """Return sizes and axis for `split`."""
    dim %= x.dim()
    many = [parts] if type(parts) is int else [*parts]
    sizes = {w.size: (w, left) for w, left in lowered.of_kind("split", dim, x.dim()) if w.size in many}
    new = [sizes[size][1] if size in sizes else size for size in many]
    total = sum(new)
    if not sizes or (x.shape[dim] % total if type(parts) is int else x.shape[dim] - total):
        return parts, dim
    for written, _ in sizes.values():
        lowered.note(written)
    return (total if type(parts) is int else new), dim


def _sliced(lowered: _Lowered, x: Tensor, index: Any) -> tuple[Any, ...]:
    """Return the index for `x[index]`, if it is made of slices."""
    many = [*index] if isinstance(index, tuple) else [index]
    if not all(each is Ellipsis or isinstance(each, slice) for each in many) or many.count(Ellipsis) > 1:
        return (index,)
    if Ellipsis in many:
        at = many.index(Ellipsis)
        many[at : at + 1] = [slice(None)] * (x.dim() - len(many) + 1)
    return (tuple(_bounded(lowered, x, dim, each) for dim, each in enumerate(many)),)


def _bounded(lowered: _Lowered, x: Tensor, dim: int, given: slice) -> slice:
    """Lower both ends of a slice of an axis, whose whole size is what remains of a written one."""
    sizes = {w.size: (w, left) for w, left in lowered.of_kind("slice", dim, x.dim())}
    if not {type(end) for end in (given.start, given.stop)} <= {int, type(None)}:
        return given
    for whole in (size for size, (_, left) in sizes.items() if left == x.shape[dim]):
        start, stop = (end + whole if end is not None and end < 0 else end for end in (given.start, given.stop))
        written = [sizes[place][0] for place in (start, stop) if place in sizes]
        if written:
            for size in (sizes[whole][0], *written):
                lowered.note(size)
            start, stop = (sizes[place][1] if place in sizes else place for place in (start, stop))
            return slice(start, stop, given.step)
    return given


_CHANGES = {
    "view": _viewed, "reshape": _viewed, "unflatten": _unflattened, "expand": _expanded, "broadcast_to": _expanded,
    "split": _split, "split_with_sizes": _split, "__getitem__": _sliced,
}  # fmt: skip


def _shape(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """Return the sizes that a call names; None for a view of another type."""
    first = (*args, *kwargs.values())[:1]
    if not first or isinstance(first[0], torch.dtype):
        return None
    return [*first[0]] if isinstance(first[0], tuple | list) else [*args]
