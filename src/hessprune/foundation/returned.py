"""The results of a loss or a metric for a batch, checked: a mistake in a user's function is one line that names it."""

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hessprune.errors import ArgumentError, DataError, HessPruneError
from hessprune.foundation.trees import describe


def check_average(loss_fn: Any) -> None:
    """Raise unless a loss averages.

    Raises:
        ArgumentError: The loss says that it sums, or keeps one number for each sample.

    Example:
        >>> from torch import nn
        >>> check_average(nn.MSELoss())
    """
    reduction = getattr(loss_fn, "reduction", "mean")
    if reduction in ("sum", "none"):
        raise ArgumentError(f"`loss_fn` must average over samples, got reduction={reduction!r}. Use reduction='mean'.")


def applied(function: Callable[[Any, Any], Any], output: Any, targets: Any, name: str) -> Any:
    """Return what a function makes of an output and the targets.

    Args:
        function: A loss or a metric; an error of its own stays as it is, but for those of torch.
        output: Of a model.
        targets: Of the batch, or None.
        name: The argument that messages name.

    Raises:
        ArgumentError: The function takes other arguments, or torch cannot compute with these.
        AcceleratorError: A kernel fails on the device.
        AttributeError: The function raises it.
        DataError: There are no targets, and it fails without.
        OutOfMemoryError: The device is full.
        TypeError: The function raises it.
        ValueError: The function raises it.
    """
    try:
        return function(output, targets)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:  # of torch; NotImplementedError is one, too
        raise ArgumentError(
            f"`{name}` must accept the output and the targets, got {_reason(error)} from {name}({describe(output)}, "
            f"{describe(targets)}). It is called as {name}(output, targets): write its arguments in that order."
        ) from error
    except (TypeError, AttributeError, ValueError) as error:
        if isinstance(error, HessPruneError):
            raise
        if isinstance(error, TypeError) and not _takes_two(function):
            raise ArgumentError(
                f"`{name}` must take the output and the targets, got a function of other arguments. Write "
                f"{name}=lambda output, targets: …"
            ) from error
        if targets is None:
            raise DataError(
                f"the batches must hold targets for `{name}`, got inputs alone ({_reason(error)}). Yield (inputs, "
                "targets), or pass a function of the output alone."
            ) from error
        raise


def loss_on(loss_fn: Callable[[Any, Any], Any], output: Any, targets: Any) -> Tensor:
    """Return the loss of a batch, a scalar tensor.

    Raises:
        ArgumentError: The loss is no tensor of one number, or the function takes other arguments.
        DataError: There are no targets, and the function fails without.

    Example:
        >>> import torch
        >>> loss_on(torch.nn.functional.mse_loss, torch.ones(2), torch.zeros(2))
        tensor(1.)
    """
    loss = applied(loss_fn, output, targets, "loss_fn")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ArgumentError(
            "`loss_fn` must return one number for a batch, a tensor with a gradient, got "
            f"{_form(loss)}. Average over samples."
        )
    return loss.reshape(())


def check_depends(loss: Tensor) -> None:
    """Raise unless a loss comes from the model's outputs.

    Raises:
        ArgumentError: It has no gradient.
    """
    if not loss.requires_grad:
        raise ArgumentError(
            "`loss_fn` must depend on the model's outputs, got a loss without a gradient in them. Compute it from "
            "the output with torch's own functions."
        )


def number_on(function: Callable[[Any, Any], Any], output: Any, targets: Any, name: str) -> float:
    """Return the number that a loss or a metric gives for a batch.

    Raises:
        ArgumentError: It gives something else, or takes other arguments.
        DataError: There are no targets, and the function fails without.

    Example:
        >>> number_on(lambda output, targets: 0.5, None, None, "metric")
        0.5
    """
    value = applied(function, output, targets, name)
    single = value.numel() == 1 if isinstance(value, Tensor) else getattr(value, "shape", None) == ()
    if not (single or isinstance(value, Real)):
        raise ArgumentError(
            f"`{name}` must give one number for a batch, got {_form(value)}. Average over samples, and return the mean."
        )
    return float(value)


def _reason(error: Exception) -> str:
    """Return what a function raised, in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def _form(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return str(tuple(shape)) if isinstance(shape, tuple) else type(value).__name__


def _takes_two(function: Any) -> bool:
    """Return whether a function may be called with two arguments; True where it does not say."""
    try:
        signature = inspect.signature(getattr(function, "forward", function))
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, None)
    except TypeError:
        return False
    return True
