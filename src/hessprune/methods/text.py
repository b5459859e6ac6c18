"""Methods as text: `hap(estimator=hutchinson,precision=bf16)` in recipes and on the command line."""

import re
import typing
from dataclasses import fields
from typing import Any

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice, nearest
from hessprune.foundation.formatting import shown
from hessprune.foundation.options import choices_of, options_of
from hessprune.methods.method import METHODS, Method, check_method
from hessprune.methods.table import load_methods

_PATTERN = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_WORDS = {"true": True, "false": False, "none": None}


def as_method(value: "str | Method") -> Method:
    """Return a method given as a value, or as text.

    Raises:
        ArgumentError: There is no such method or option, or the option cannot have this value.

    Example:
        >>> from hessprune.methods.text import as_method
        >>> as_method("hap(estimator=hutchinson, num_probes=30)")
        HAP(estimator='hutchinson', precision='fp32', num_probes=30, until=None, seed=None, memory_limit=None)
    """
    load_methods()
    if not isinstance(value, str):
        return check_method(value)
    match = _PATTERN.fullmatch(value)
    if match is None:
        raise ArgumentError(
            f"`method` must read NAME or NAME(OPTION=VALUE,…), got {shown(value)}. "
            "Write for example 'hap(estimator=hutchinson)'."
        )
    name, inside = match.groups()
    check_choice("method", name, METHODS)
    return METHODS[name](**_options(METHODS[name], inside or ""))


def split_methods(text: str) -> tuple[str, ...]:
    """Split a list at the commas outside parentheses.

    Example:
        >>> from hessprune.methods.text import split_methods
        >>> split_methods("random, hap(estimator=exact,precision=bf16)")
        ('random', 'hap(estimator=exact,precision=bf16)')
    """
    parts = re.split(r",(?![^()]*\))", text)
    return tuple(part.strip() for part in parts if part.strip())


def _options(method: type[Method], text: str) -> dict[str, Any]:
    hints, options = typing.get_type_hints(method), {}
    names = [item.name for item in fields(method)]  # type: ignore[arg-type]
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in names:
            known = f" Choose from {', '.join(names)}." if names else " It has none."
            raise ArgumentError(
                f"option of method {method.name!r} must read NAME=VALUE, got {shown(part)}."
                f"{nearest(name, names) or known}"
            )
        options[name] = _value(value, hints[name])
    return options


def _value(text: str, hint: Any) -> Any:
    """Read one value as its annotation asks; what does not fit is left to the check of the option."""
    members = options_of(hint)
    if any(text in choices_of(member) for member in members):
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        if kind in members or (kind is int and float in members):
            try:
                return kind(text)
            except ValueError:
                continue
    return text
