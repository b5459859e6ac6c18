"""Objects of the user's own modules, by name, and packages that bring models."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hessprune.errors import ArgumentError, MissingDependencyError
from hessprune.foundation.checks import nearest
from hessprune.foundation.formatting import shown
from hessprune.foundation.hashing import file_sha256


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


def module_of_file(path: Path) -> ModuleType:
    """Run a Python file as a module, as `python file.py` would find its neighbours; the same file is run once.

    Raises:
        ArgumentError: There is no such file, or running it fails.
    """
    if not path.is_file():
        raise ArgumentError(f"file {shown(str(path), 160)} of `name` must exist. Write path/to/file.py:function")
    name = f"{path.stem}_{file_sha256(path)[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is that of Python's
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # running a file can fail in any way
        del sys.modules[name]
        reason = " ".join(str(error).split())[:160]
        raise ArgumentError(
            f"file {shown(str(path), 160)} of `name` cannot be run ({type(error).__name__}: {reason}). "
            f"Run it alone first: python {path}"
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def zoo_import(package: str, *names: str) -> Any:
    """Import a package that brings models of its own, and return it.

    Args:
        package: `transformers`, `timm` or `torchvision`.
        names: Attributes that are needed; some packages load them only when they are used.

    Raises:
        MissingDependencyError: The package is not installed, or does not import beside this build of torch.
    """
    try:
        module = importlib.import_module(package)
        for name in names:
            getattr(module, name)
    except Exception as error:  # importing a module runs it, so anything can happen
        raise MissingDependencyError(import_advice(package, error)) from error
    return module


def import_advice(package: str, error: BaseException) -> str:
    """Say why a package cannot be imported, and what to install.

    Example:
        >>> import_advice("timm", ModuleNotFoundError("No module named 'timm'", name="timm"))
        '`timm` is needed here and is not installed. Run: pip install timm'
    """
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return f"`{package}` is needed here and is not installed. Run: pip install {package}"
    while error.__cause__ is not None:  # transformers wraps the reason
        error = error.__cause__
    reason = " ".join(str(error).split())[:160].rstrip(".")
    if "torchvision" in reason:
        return (
            f"`{package}` is needed here and cannot be imported, because torchvision is of another build than torch "
            f"({type(error).__name__}: {reason}). Install both from one place, as pytorch.org says, or run: "
            "pip uninstall torchvision"
        )
    return (
        f"`{package}` is needed here and cannot be imported ({type(error).__name__}: {reason}). "
        f"Run: pip install --upgrade {package}"
    )
