"""hessprune: smaller, faster neural networks from second-order information.

A model goes in at the top, a smaller model and a report come out at the bottom; between each pair of stages there is
one small value that can be printed, saved and tested: groups → saliency → plan → surgery → fine-tune → export.

The public names stand in `__init__.pyi`, by stage. Each is imported when it is first used.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
_IMPORTS = [node for node in _STUB.body if isinstance(node, ast.ImportFrom) and node.module != "hessprune"]
_HOMES = {alias.name: node.module for node in _IMPORTS for alias in node.names}
_RETURNED = {
    "Bottlenecks",
    "Comparison",
    "LatencyTable",
    "PruneResult",
    "Saliency",
    "Statistics",
    "TraceResult",
    "Widening",
}
"""Types of returned values: there for annotations, and not among the names that one calls."""
__all__ = [name for name in _HOMES if name not in _RETURNED]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name == "errors":
        return importlib.import_module("hessprune.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'hessprune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(str(_HOMES[name])), name)
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*_HOMES, "__version__", "errors"]
