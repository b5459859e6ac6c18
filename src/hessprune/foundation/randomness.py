"""Forwards that draw random numbers, made repeatable for a comparison of two models of different widths."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hessprune.foundation.state import seeded


@contextmanager
def without_chance(seed: int = 0) -> Iterator[None]:
    """Seed torch, and replace every floating-point draw by one half: dropout becomes a factor.

    A seed alone does not suffice: a narrower layer draws fewer numbers, so all later draws are others.

    Example:
        >>> import torch
        >>> from hessprune.foundation.randomness import without_chance
        >>> with without_chance():
        ...     torch.nn.functional.dropout(torch.ones(3), 0.5, training=True)
        tensor([1., 1., 1.])
    """
    with seeded(seed), _Halves():
        yield


# Operators whose result holds random numbers alone; in-place forms count under the same name.
_DRAWS = {
    "rand", "rand_like", "randn", "randn_like", "normal", "normal_functional", "uniform", "bernoulli", "exponential",
    "log_normal", "cauchy", "geometric", "poisson", "binomial", "_standard_gamma",
}  # fmt: skip


class _Halves(TorchDispatchMode):
    """Fills the result of every random operator with one half."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(result[1])
        if _name_of(func) in _DRAWS and isinstance(result, Tensor) and result.is_floating_point():
            return result.fill_(0.5)
        return result


def _name_of(func: Any) -> str:
    """Return the name of an operator without namespace, overload and the underscore of in-place forms."""
    return func._schema.name.partition("::")[2].rstrip("_")
