"""Checks of arguments and data: one message template, the nearest valid choice, the remedy."""

import difflib
import importlib
from collections.abc import Collection, Iterable, Iterator
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hessprune.errors import ArgumentError, DataError, MissingDependencyError, NumericalError
from hessprune.foundation.formatting import shown


def nearest(value: object, choices: Collection[str]) -> str:
    """Return ` Did you mean 'x'?` for the closest valid choice, or an empty string."""
    close = difflib.get_close_matches(str(value), sorted(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`; the message names the nearest one.

    Raises:
        ArgumentError: `value` is not a valid choice.

    Example:
        >>> check_choice("method", "hap", ["hap", "random"])
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in sorted(choices))
        raise ArgumentError(f"`{name}` must be one of {listed}, got {shown(value)}.{nearest(value, choices)}")


def check_range(name: str, value: float, *, low: float, high: float = float("inf"), integer: bool = False) -> None:
    """Raise unless `low ≤ value ≤ high`.

    Raises:
        ArgumentError: `value` is out of range, not a number, or not an integer where one is meant.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (integer and not isinstance(value, int)) or not low <= value <= high:
        kind = "an integer" if integer else "a number"
        bound = f"of at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise ArgumentError(f"`{name}` must be {kind} {bound}, got {shown(value)}.")


def check_rereadable(batches: Any, name: str = "batches") -> None:
    """Raise unless `batches` can be iterated again and again.

    Raises:
        DataError: `batches` is a one-shot generator, or cannot be iterated.

    Example:
        >>> check_rereadable([1, 2])
    """
    if isinstance(batches, Iterator):
        raise DataError(
            f"`{name}` must be re-iterable, got a one-shot {type(batches).__name__}: curvature, fine-tuning and "
            f"evaluation each read it from the start. Pass a list, a DataLoader, or `list({name})`."
        )
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise DataError(f"`{name}` must be an iterable of batches, got {shown(batches)}. Pass a list or a DataLoader.")


def refuse_ended(batches: Any, name: str = "batches") -> NoReturn:
    """Say that batches could be read only once.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"`{name}` must be re-iterable, got a {type(batches).__name__} that gives nothing when it is read again. Let "
        "its __iter__, or that of its data set, return a new iterator every time."
    )


def check_batches(batches: Iterable[Any], name: str = "batches") -> None:
    """Raise unless `batches` can be iterated again and again and yields something.

    Raises:
        DataError: `batches` is a one-shot generator, or is empty.

    Example:
        >>> check_batches([(torch.zeros(2, 3), torch.zeros(2))])
    """
    check_rereadable(batches, name)
    if not any(True for _ in batches):
        raise DataError(f"`{name}` must hold at least one (inputs, targets) pair, got none. Check path and split.")


def check_labels(targets: Tensor, num_classes: int, name: str = "batches") -> None:
    """Raise unless integer `targets` lie in `[0, num_classes)`; −100 marks positions to ignore.

    Raises:
        DataError: A label is out of range.
    """
    if targets.is_floating_point() or targets.numel() == 0:
        return
    valid = targets[targets != -100]
    least, most = (int(valid.min()), int(valid.max())) if valid.numel() else (0, 0)
    if least < 0 or most >= num_classes:
        raise DataError(
            f"labels in `{name}` must be in [0, {num_classes}), the model's number of outputs, got values from {least} "
            f"to {most}. Renumber the labels from 0, or give the model more outputs; where a label is to be ignored, "
            f"write -100, or loss_fn=nn.CrossEntropyLoss(ignore_index={least if most < num_classes else most})."
        )


def check_numbers(model: nn.Module) -> None:
    """Raise if any parameter or buffer is a shape without numbers.

    Raises:
        NumericalError: Some lies on the meta device.
    """
    empty = [name for name, value in model.state_dict().items() if isinstance(value, Tensor) and value.is_meta]
    if empty:
        raise NumericalError(
            f"weights must hold numbers, got {empty[0]!r} on the meta device. "
            "Call model.to_empty(device='cpu') and load weights."
        )


def check_finite_parameters(model: nn.Module) -> None:
    """Raise if any parameter or statistic holds a NaN or an infinity, or another buffer a NaN, naming all of them.

    Masks of attention and bounds of clamps are buffers that may be infinite.

    Raises:
        NumericalError: Some state is not finite, or lies on the meta device.
    """
    check_numbers(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    bad = [
        name
        for name, value in model.state_dict().items()
        if not bool(torch.isfinite(value).all())
        and (name in parameters or name.endswith(("running_mean", "running_var")) or bool(torch.isnan(value).any()))
    ]
    if bad:
        shown = ", ".join(repr(name) for name in bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise NumericalError(
            f"weights must be finite, got NaN or infinity in {shown}. Load a checkpoint that converged."
        )


def optional_import(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        MissingDependencyError: The package is not installed; the message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"`{module}` is needed here and cannot be imported ({error}). Run: pip install 'hessprune[{extra}]'"
        ) from error
