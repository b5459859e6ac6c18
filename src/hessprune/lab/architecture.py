"""The architecture of a model: what its weights do not tell."""

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

from torch import nn

LIBRARIES = ("torch", "hessprune")
"""Packages whose modules a version stands for; a user's own modules are known by their files."""


def architecture_of(model: nn.Module) -> str:
    """Return a SHA-256 over a model's modules, and over the user's files that define them.

    Example:
        >>> from torch import nn
        >>> from hessprune.lab.architecture import architecture_of
        >>> architecture_of(nn.ReLU()) == architecture_of(nn.GELU())
        False
    """
    digest = hashlib.sha256(repr(model).encode())
    for path in sorted({path for module in model.modules() for path in _definition(type(module))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _definition(cls: type) -> Iterator[Path]:
    """Yield the file that defines a module of the user's, if there is one."""
    if cls.__module__.partition(".")[0] in LIBRARIES:
        return
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # made in an interactive session or by a compiler
        file = None
    if file and Path(file).is_file():
        yield Path(file)
