"""Losses by name, as recipes write them."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import nearest
from hessprune.foundation.formatting import shown
from hessprune.foundation.imports import callable_at
from hessprune.foundation.words import next_word

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "next_word": next_word,
}


def loss_by_name(name: str) -> Callable[..., Any]:
    """Return a loss of `(outputs, targets)`.

    Args:
        name: A key of `LOSSES`, or `package.module:function`.

    Raises:
        ArgumentError: There is no such loss.

    Example:
        >>> from hessprune.lab.losses import loss_by_name
        >>> loss_by_name("mse").__name__
        'mse_loss'
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" in name:
        return callable_at(name, "loss")
    listed = ", ".join(LOSSES)
    raise ArgumentError(
        f"`loss` must be one of {listed}, or package.module:function, got {shown(name)}.{nearest(name, LOSSES)}"
    )
