"""Operators: one table of all that the library knows about each of them, filled by one file per family."""

import importlib
import pkgutil


def load_families() -> None:
    """Import every file of this folder; a family registers its operators when it is imported."""
    for file in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{file.name}")


load_families()
