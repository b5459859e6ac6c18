"""Objects of the user's own modules, by name: `package.module:attribute`."""

import importlib
from collections.abc import Callable
from typing import Any

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import nearest


def callable_at(name: str, argument: str = "name") -> Callable[..., Any]:
    """Import a module and return one of its callables.

    Args:
        name: `package.module:attribute`.
        argument: The argument that messages name.

    Raises:
        ArgumentError: The module cannot be imported, or holds no such callable.

    Example:
        >>> from hessprune.foundation.imports import callable_at
        >>> callable_at("math:sqrt")(4)
        2.0
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # importing a module runs it, so anything can happen
        raise ArgumentError(
            f"module {path!r} of `{argument}` {name!r} cannot be imported ({type(error).__name__}: {error}). "
            "Install it, or run from the folder that holds it with that folder on PYTHONPATH."
        ) from error
    value: Any = getattr(module, attribute, None)
    if not callable(value):
        public = [key for key, item in vars(module).items() if callable(item)]
        raise ArgumentError(f"module {path!r} must hold a callable {attribute!r}.{nearest(attribute, public)}")
    return value
