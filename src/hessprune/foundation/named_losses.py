"""The loss that `loss_fn` takes by name."""

from typing import Any

from torch import nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.foundation.words import next_word

NAMED = {"next_word": next_word}
"""Losses that have no name among the public ones."""


def loss_of(loss_fn: Any) -> Any:
    """Return a loss by its name; a function or None as it is.

    Raises:
        ArgumentError: No loss has this name, or the value is neither a name nor a function, or the class of a loss.

    Example:
        >>> loss_of("next_word").__name__, loss_of(None)
        ('next_word', None)
    """
    if isinstance(loss_fn, str) and loss_fn in NAMED:
        return NAMED[loss_fn]
    if isinstance(loss_fn, type) and issubclass(loss_fn, nn.Module):
        call = f"{'nn.' if loss_fn.__module__.startswith('torch.nn.') else ''}{loss_fn.__name__}()"
        raise ArgumentError(f"`loss_fn` must be a loss, got the class {loss_fn.__name__}. Write {call}.")
    if loss_fn is not None and not callable(loss_fn):
        listed = ", ".join(map(repr, NAMED))
        raise ArgumentError(
            f"`loss_fn` must be a function of (output, targets), got {type(loss_fn).__name__} {shown(loss_fn)}. "
            f"By name there is only {listed}, for language models; else pass one such as torch.nn.MSELoss()."
        )
    return loss_fn
