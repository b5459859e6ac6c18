"""Shapes without numbers at the least cost: torch decomposes some operators in Python, a few milliseconds a call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NEAREST = {"mode": "nearest", "align_corners": None, "antialias": False}
_ELEMENTWISE = {
    functional.dropout,
    functional.gelu,
    functional.hardswish,
    functional.normalize,
    functional.relu,
    functional.relu6,
    functional.sigmoid,
    functional.silu,
    functional.softmax,
    torch.clamp,
    torch.relu,
    torch.sigmoid,
    torch.softmax,
    Tensor.clamp,
    Tensor.relu,
    Tensor.sigmoid,
    Tensor.softmax,
}
"""Functions whose result has the shape of their first argument, whatever that is."""


class QuickSizes(TorchFunctionMode):
    """Give tensors without numbers the shapes that torch would, but not through torch's slow decompositions.

    Images are resized as by nearest neighbours, which costs a thousandth; a function of single elements, a
    normalisation over the last axes or a linear map that fits its input returns an empty tensor. The rest runs as is.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch."""
        given = dict(kwargs or {})
        value = args[0] if args else None
        if isinstance(value, Tensor) and value.is_meta:
            beside = (*args[1:], *given.values())
            if func in _ELEMENTWISE and not any(isinstance(other, Tensor | torch.dtype) for other in beside):
                return torch.empty_like(value)  # bounds of `clamp` that are tensors have shapes of their own
            if func is functional.layer_norm and _fits(value, *args[1:], **given):
                return torch.empty_like(value)
            if func is functional.linear and (shape := _mapped(value, *args[1:], **given)):
                return value.new_empty(shape)
            if func is functional.interpolate:
                given |= _NEAREST
        return func(*args, **given)


def _fits(
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    """Return whether a layer norm may be called with these arguments."""
    shape = torch.Size(normalized_shape)
    beside = [tensor.shape for tensor in (weight, bias) if tensor is not None]
    return len(shape) > 0 and value.shape[-len(shape) :] == shape and all(other == shape for other in beside)


def _mapped(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[int, ...] | None:
    """Return the shape of a linear map's result, or None where its weights do not fit."""
    fits = value.dim() > 0 and weight.dim() == 2 and value.shape[-1] == weight.shape[1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    return (*value.shape[:-1], weight.shape[0]) if fits else None
