"""Compare a sliced model with a masked one: the same function, up to rounding, or a fault."""

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hessprune.foundation.modules import DEVICE_FAILURES, call_model, device_of, to_dtype
from hessprune.foundation.randomness import without_chance
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import to_device
from hessprune.layers.calls import CallMode
from hessprune.structure.masking import Followers
from hessprune.structure.outputs import difference, is_finite_somewhere

_log = logging.getLogger(__name__)

# Largest accepted difference, relative to the largest output. Both models run in float64 where the model allows it;
# the order of summation remains.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
ROUNDED = 1e-5
"""Largest difference, relative to the largest output, of equal models that round to single precision on their way."""

# A zero in a divisor, such as a stored deviation, makes numbers that are not finite; but a unit that another
# activation multiplies is gone only if its bias is zero, too.
_WAYS: tuple[Followers, ...] = ("kept", "layers", "all")


def compare(
    mask: Callable[[Followers], nn.Module],
    sliced: nn.Module,
    inputs: Any,
    *,
    awake: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, torch.dtype]:
    """Return the relative difference of a sliced model from the closest masked one, and the precision of both.

    Costs two forwards if the first mask agrees, and up to two more if not; as many again in single precision where
    outputs in double precision are not finite. Draws of random numbers are the same in all. Where a forward rounds to
    single precision on its way, the models run again without, if that is the difference.

    Args:
        mask: Returns a new masked model; what follows the units is kept or masked as asked.
        sliced: The sliced model; its dtype is changed.
        inputs: A tensor, a tuple of positional, or a dict of keyword arguments.
        awake: Whether every ReLU lets a part of negative numbers pass, in both models: a difference in front of units
            that are zero on these inputs shows, too.
        dtype: The precision to try first.
    """
    least, dtype = _least(mask, sliced, inputs, awake, dtype)
    if dtype == torch.float64 and TOLERANCE[dtype] < least < ROUNDED:
        with suppress(Exception), _Whole():  # the forward may insist on its roundings
            least = min(least, _least(mask, sliced, inputs, awake, dtype)[0])
    return least, dtype


def _least(
    mask: Callable[[Followers], nn.Module], sliced: nn.Module, inputs: Any, awake: bool, dtype: torch.dtype
) -> tuple[float, torch.dtype]:
    masked = mask("kept")
    try:
        expected = outputs_of(masked, inputs, dtype, awake)
    except Exception as error:  # the forward insists on its own precision, or fails in that one, too
        if isinstance(error, DEVICE_FAILURES):
            _log.warning("the device holds no copy of the model in %s: models are compared in float32", dtype)
        dtype = torch.float32
        expected = outputs_of(masked, inputs, dtype, awake)
    del masked  # two models in double precision at a time would be one too many
    actual = outputs_of(sliced, inputs, dtype, awake)
    if dtype == torch.float64 and not is_finite_somewhere(actual):  # as where a forward adds the least number of a type
        return compare(mask, sliced, inputs, awake=awake, dtype=torch.float32)
    least = difference(expected, actual)
    for followers in _WAYS[1:]:
        if least <= TOLERANCE[dtype]:
            break
        least = min(least, difference(outputs_of(mask(followers), inputs, dtype, awake), actual))
    return least, dtype


def outputs_of(model: nn.Module, inputs: Any, dtype: torch.dtype, awake: bool = False) -> Any:
    """Convert a model to a precision and return what its forward returns in evaluation mode, without chance."""
    model = to_dtype(model, dtype)
    leaky = _Leaky() if awake else nullcontext()
    with torch.no_grad(), evaluation_mode(model), without_chance(), CallMode({}, 1), leaky:
        return call_model(model, to_device(inputs, device_of(model), dtype))


class _Whole(TorchDispatchMode):
    """Keeps numbers in double precision that a forward rounds to a lower one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            asked = kwargs.get("dtype")
            kwargs = {**kwargs, "dtype": torch.float64} if asked and asked.is_floating_point else kwargs
        return func(*args, **kwargs)


class _Leaky(TorchDispatchMode):
    """Replaces ReLU and ReLU6 by a function that is zero at zero alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func in {aten.relu.default, aten.hardtanh.default}:
            return aten.leaky_relu.default(args[0], 0.5)
        if func in {aten.relu_.default, aten.hardtanh_.default}:
            return aten.leaky_relu_.default(args[0], 0.5)
        return func(*args, **(kwargs or {}))


def positive(inputs: Any) -> Any:
    """Return the magnitudes of the inputs, for models that take positive numbers alone, as a logarithm does."""
    return tree_map(_magnitude, inputs)


def _magnitude(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value
