"""Shapes without numbers at the least cost: torch decomposes some operators in Python, a few milliseconds a call."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

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
_GATES = {torch.lstm: 4, torch.gru: 3, torch.rnn_tanh: 1, torch.rnn_relu: 1}
"""Recurrent layers, which torch unrolls step by step, with the number of rows of a weight for each hidden unit."""


class QuickSizes(TorchFunctionMode):
    """Give tensors without numbers the shapes that torch would, but not through torch's slow decompositions.

    Images are resized as by nearest neighbours, which costs a thousandth; a function of single elements, a
    normalisation over the last axes, a linear map or a recurrent layer that fits its input returns an empty tensor.
    The rest runs as is.
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
            if func in _GATES and (found := _recurred(_GATES[func], value, *args[1:], **given)):
                return found
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


def _recurred(
    gates: int,
    value: Tensor,
    state: Any,
    weights: Any,
    has_biases: bool = False,
    num_layers: int = 1,
    _dropout: float = 0.0,
    _train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, ...] | None:
    """Return what a recurrent layer does: its outputs and its last states; None where something does not fit."""
    states = (state,) if isinstance(state, Tensor) else state
    if not isinstance(has_biases, bool) or not isinstance(states, tuple):
        return None  # a packed sequence
    directions = 2 if bidirectional else 1
    hidden, width = states[-1].shape[-1], states[0].shape[-1]  # apart where an LSTM projects its outputs
    begun = (num_layers * directions, value.shape[0 if batch_first else 1]) if value.dim() == 3 else ()
    if any(each.shape[:-1] != begun for each in states):
        return None
    inputs, shapes = value.shape[-1], []
    for _layer in range(num_layers):
        one = [(gates * hidden, inputs), (gates * hidden, width)]
        one += [(gates * hidden,)] * 2 if has_biases else []
        one += [(width, hidden)] if width != hidden else []
        shapes += one * directions
        inputs = width * directions
    if [tuple(weight.shape) for weight in weights] != shapes:
        return None
    output = value.new_empty((*value.shape[:-1], width * directions))
    return output, *(torch.empty_like(each) for each in states)


class KnownSizes(TorchDispatchMode):
    """Remember the shapes that each operator gave for arguments without numbers: blocks of one shape repeat its calls.

    Operators that write into an argument, return a view of one, or see a tensor with numbers run as they are.

    Example:
        >>> import torch
        >>> from hessprune.foundation.quicksizes import KnownSizes
        >>> x = torch.empty(2, 3, device="meta")
        >>> with KnownSizes() as sizes:
        ...     shapes = [torch.exp(x).shape for _ in range(9)]
        >>> len(sizes.known), shapes[-1]
        (1, torch.Size([2, 3]))
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Hashable, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch, or return empty tensors of the shapes that it is known to give."""
        kwargs = kwargs or {}
        key = None if isinstance(func, HigherOrderOperator) or not _makes_new(func) else _key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        if key not in self.known:
            result = func(*args, **kwargs)
            leaves, spec = tree_flatten(result)
            if not all(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
                return result
            self.known[key] = [(leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves], spec
            return result
        forms, spec = self.known[key]
        made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in forms]
        return tree_unflatten(made, spec)


@cache
def _makes_new(func: Any) -> bool:
    """Return whether an operator writes into no argument and returns no view of one."""
    schema = func._schema
    return not any(part.alias_info is not None for part in (*schema.arguments, *schema.returns))


def _key(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """Return all that decides the shapes of a result; None where numbers might."""
    leaves, spec = tree_flatten((args, kwargs))
    parts: list[Hashable] = [func, str(spec)]
    tensors = 0
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            parts.append((type(leaf), leaf))
        elif type(leaf) in {Tensor, nn.Parameter} and leaf.is_meta and leaf.layout is torch.strided:
            parts.append((leaf.shape, leaf.stride(), leaf.dtype))
            tensors += 1
        else:
            return None
    return tuple(parts) if tensors else None
