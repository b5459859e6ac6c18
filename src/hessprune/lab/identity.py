"""What a result depends on besides settings and data: the code that computes it, and the model's architecture."""

import hashlib
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

PACKAGE = Path(__file__).parents[1]
CODE = (
    *("data", "models", "structure", "curvature", "saliency", "planning", "surgery", "training", "quantize"),
    *(
        "evaluate",
        "latency",
        "timing",
        "export",
        "checkpoint",
        "run/decisions",
        "run/stages",
        "run/integers",
        "run/stepwise",
    ),
)
"""The parts of the package that decide numbers; the foundation, whose names begin with `_`, always counts."""


@cache
def code_of(*parts: str) -> str:
    """Return a SHA-256 over the sources of some parts, over the foundation's, and over the versions at work.

    Example:
        >>> code_of("planning") == code_of("planning"), code_of("planning") == code_of("surgery")
        (True, False)
    """
    digest = hashlib.sha256(f"{metadata.version('hessprune')} {torch.__version__}".encode())
    for path in sorted(_sources(parts)):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def architecture_of(model: nn.Module) -> str:
    """Return a SHA-256 over a model's modules and over the files that define them: all that weights do not tell."""
    digest = hashlib.sha256(repr(model).encode())
    for path in sorted({path for module in model.modules() for path in _definition(type(module))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sources(parts: tuple[str, ...]) -> Iterator[Path]:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if (name.startswith("_") and name != "__init__") or any(f"{name}/".startswith(f"{part}/") for part in parts):
            yield path


def _definition(cls: type) -> Iterator[Path]:
    """Yield the file that defines a module outside torch, if there is one."""
    if cls.__module__.partition(".")[0] == "torch":
        return
    try:
        file = inspect.getsourcefile(cls)
    except TypeError:  # made in an interactive session or by a compiler
        file = None
    if file and Path(file).is_file():
        yield Path(file)
