"""Options of values, checked against their annotations: choices, numbers, flags."""

import types
import typing
from dataclasses import fields
from typing import Any, Literal

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice
from hessprune.foundation.formatting import shown


def check_options(value: Any) -> None:
    """Raise unless every field of a dataclass holds what its annotation allows.

    Checked are `Literal`, `int`, `float`, `bool`, `str`, `None` and unions of these; other annotations accept anything.

    Raises:
        ArgumentError: A field holds another type, or none of its choices; the message names the field.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Options:
        ...     precision: Literal["fp32", "bf16"] = "fp32"
        >>> check_options(Options())
    """
    hints = typing.get_type_hints(type(value))
    for item in fields(value):
        _check(item.name, getattr(value, item.name), hints[item.name])


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    return (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the choices of a `Literal`, nothing for other annotations."""
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _check(name: str, value: Any, hint: Any) -> None:
    options = options_of(hint)
    if any(_fits(value, option) for option in options):
        return
    choices = [choice for option in options for choice in choices_of(option)]
    if choices and isinstance(value, str):
        check_choice(name, value, choices)
    words = " or ".join(_spoken(option) for option in options)
    raise ArgumentError(f"`{name}` must be {words}, got {shown(value)}.")


def _fits(value: Any, hint: Any) -> bool:
    if choices := choices_of(hint):
        return value in choices
    if hint is bool or isinstance(value, bool):
        return isinstance(value, bool) and hint in (bool, Any)
    if hint is float:
        return isinstance(value, int | float)
    if hint is None or hint is type(None):
        return value is None
    return isinstance(value, hint) if isinstance(hint, type) and hint is not float else True


def _spoken(hint: Any) -> str:
    if choices := choices_of(hint):
        return " or ".join(repr(choice) for choice in choices)
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "None"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def check_type(name: str, value: object, kind: type, example: str) -> None:
    """Raise unless an argument is of a type; the message shows how to write one.

    Raises:
        ArgumentError: It is of another type.

    Example:
        >>> from hessprune.foundation.options import check_type
        >>> check_type("seed", 3, int, "3")
    """
    if not isinstance(value, kind):
        raise ArgumentError(
            f"`{name}` must be of type {kind.__name__}, got {shown(value)}. Write for example {example}."
        )


def check_flag(name: str, value: object) -> None:
    """Raise unless an argument is True or False.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"`{name}` must be True or False, got {shown(value)}.")
