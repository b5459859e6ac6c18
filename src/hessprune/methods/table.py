"""The methods of this room, found by reading its files: a new file is a new method."""

import importlib
import pkgutil
from functools import cache

import hessprune.methods


@cache
def load_methods() -> None:
    """Import every file of this room once, so that all methods are registered."""
    for module in pkgutil.iter_modules(hessprune.methods.__path__):
        importlib.import_module(f"{hessprune.methods.__name__}.{module.name}")
