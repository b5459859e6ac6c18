"""Forwards without arithmetic that still answer questions about integers: only floating-point numbers are absent.

Models of transformers ask whether a mask is needed, and look at positions for it. On the meta device nothing answers.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map

from hessprune.foundation.trees import rebuilt

_EMPTY = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default}
"""The operators behind `torch.tensor`, which writes no numbers where it asked for none."""


class RealIntegers(TorchDispatchMode):
    """Compute integers and truth values on the CPU, and nothing else: beside a tensor without numbers they lose theirs.

    Example:
        >>> import torch
        >>> from hessprune.foundation.integers import RealIntegers
        >>> table = torch.empty(9, 4, device="meta")
        >>> with RealIntegers():
        ...     places = torch.arange(5, device=table.device)
        ...     print(bool((places > 3).any()), torch.nn.functional.embedding(places, table).device)
        True meta
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of torch."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return func(*args, **kwargs)
        if tree_any(_is_absent, (args, kwargs)):
            if func._schema.is_mutable and not _is_absent(args[0]):
                raise RuntimeError("a tensor with numbers receives others without")
            args, kwargs = tree_map(without_numbers, (args, kwargs))
            return func(*args, **kwargs)
        if kwargs.get("device") != torch.device("meta") or func in _EMPTY:
            return func(*args, **kwargs)
        return tree_map(_as_absent, func(*args, **{**kwargs, "device": torch.device("cpu")}))


def _is_absent(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def without_numbers(value: Any) -> Any:
    """Return a tensor on the meta device in the place of one that is elsewhere; other values as they are."""
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _as_absent(value: Any) -> Any:
    """Return floating-point tensors without their numbers."""
    return without_numbers(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def with_integers(model: nn.Module) -> nn.Module:
    """Copy a model without its floating-point numbers; integer buffers keep theirs, on the CPU."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = _as_absent(buffer.detach().cpu())
    return copy.deepcopy(model, memo)


def inputs_with_integers(inputs: Any) -> Any:
    """Return inputs without their floating-point numbers; integers are on the CPU."""
    return rebuilt(inputs, lambda tensor: _as_absent(tensor.cpu()) if not tensor.is_meta else tensor)
