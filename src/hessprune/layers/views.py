"""Products with a view of a parameter, as products with the parameter: `x @ weight.T`, or a block of its rows.

What a view leaves out of a matrix gets zeros for inputs, or its outputs are cut away; so gradients of the parameter
are those of the view, and zero elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from hessprune.operators.maps import Convolution, Linear, LinearMap, SampleLayout
from hessprune.operators.table import operator_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Detour:
    """A product with a parameter that gives the one with a view of it."""

    call: LinearMap
    enter: Callable[[Tensor], Tensor] = lambda x: x
    """From the input to that of `call`."""
    leave: Callable[[Tensor], Tensor] = lambda out: out
    """From the output of `call` to that of the view."""
    is_part: bool = False
    """True if the view is a part of the parameter."""


def detour_by(call: LinearMap, view: Tensor, parameter: Tensor, samples: int, layout: SampleLayout) -> Detour | None:
    """Return how a product with a view goes through its parameter, or None if it does not.

    Example:
        >>> import torch
        >>> from hessprune.layers.views import detour_by
        >>> from hessprune.operators.maps import Linear, SampleLayout
        >>> weight, x = torch.ones(3, 2), torch.ones(1, 2)
        >>> detour = detour_by(Linear(samples=1, transposed=True), weight.t(), weight, 1, SampleLayout())
        >>> detour.call.forward(x, weight, None)
        tensor([[2., 2., 2.]])
    """
    if view.dtype != parameter.dtype:
        return None
    is_whole = _form(view) == _form(parameter) and view.shape[:2] == parameter.shape[:2]
    if is_whole and view.shape == parameter.shape:
        return Detour(call=call)
    if is_whole and parameter.shape[:2].numel() == parameter.numel() and not call.transposed:
        return _pointwise(call, Linear(samples=samples, layout=layout))
    block = None if isinstance(call, Convolution) else _block(view, parameter)
    return None if block is None else _by_block(call, block, parameter)  # type: ignore[arg-type]


def factors_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return the factors of a product of a matrix with one or several matrices; None for any other function."""
    if operator_of(func).name not in {"matmul", "mm"} or "out" in kwargs:
        return None
    left, right = [*args, *(kwargs[name] for name in ("input", "other", "mat2") if name in kwargs)]
    return (left, right) if left.dim() == 2 and right.dim() > 1 else None


class _Block(NamedTuple):
    """Rows and columns of a matrix, perhaps turned."""

    starts: tuple[int, int]
    sizes: tuple[int, int]
    is_turned: bool


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """Return where a tensor lies in its memory: the start, and size and stride of each axis with several indices."""
    axes = [pair for pair in zip(tensor.shape, tensor.stride(), strict=True) if pair[0] > 1]
    return tensor.storage_offset(), axes


def _pointwise(call: LinearMap, linear: Linear) -> Detour | None:
    """Return the linear map over channels that a product with a kernel of one entry is.

    It takes the kernels of a convolution, too.
    """
    if isinstance(call, Linear):
        return Detour(call=call)
    if call.groups > 1 or any(call.padding) or any(step > 1 for step in call.stride):
        return None
    return Detour(call=linear, enter=lambda x: x.movedim(1, -1), leave=lambda out: out.movedim(-1, 1))


def _block(view: Tensor, parameter: Tensor) -> _Block | None:
    """Return the block of a matrix that a view shows, if it is one."""
    if view.dim() != 2 or parameter.dim() != 2 or not parameter.is_contiguous() or not view.numel():
        return None
    for is_turned in (False, True):
        seen = view.t() if is_turned else view
        starts = divmod(int(seen.storage_offset() - parameter.storage_offset()), parameter.shape[1])
        ends = (start + size for start, size in zip(starts, seen.shape, strict=True))
        steps = zip(seen.shape, seen.stride(), parameter.stride(), strict=True)
        fits = all(end <= whole for end, whole in zip(ends, parameter.shape, strict=True))
        if fits and all(size == 1 or own == whole for size, own, whole in steps):
            return _Block(starts, (seen.shape[0], seen.shape[1]), is_turned)
    return None


def _by_block(call: Linear, block: _Block, parameter: Tensor) -> Detour:
    """Return the product with a whole matrix that gives the one with a block of it."""
    call = replace(call, transposed=call.transposed != block.is_turned)
    into, out = 1 - int(call.transposed), int(call.transposed)
    first, size = block.starts[into], block.sizes[into]
    sides = (first, parameter.shape[into] - first - size)
    rest = block.starts[out], block.sizes[out]
    return Detour(
        call=call,
        enter=(lambda x: F.pad(x, sides)) if any(sides) else (lambda x: x),
        leave=(lambda y: y.narrow(-1, *rest)) if rest[1] < parameter.shape[out] else (lambda y: y),
        is_part=block.sizes != tuple(parameter.shape),
    )
