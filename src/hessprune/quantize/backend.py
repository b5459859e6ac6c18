"""Backends: the runtimes that a network can be quantised for, one file of `quantize/backends/` each."""

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from hessprune.errors import ArgumentError, MissingDependencyError
from hessprune.foundation.checks import check_choice
from hessprune.foundation.formatting import shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A runtime that a network can be quantised for.

    Attributes:
        name: The `target` of `prepare_qat`.
        package: The Python package that the runtime needs; `import` and `pip install` call it by the same name.
        make_quantizer: A function of `activations`, `weight_bits` and the names of the layers that stay in FP32. It
            returns the torchao `Quantizer` that annotates a captured graph, and imports torchao only when called.
        activations: Grids of activations that the runtime has kernels for.
        weight_bits: Widths of weights that the runtime has kernels for.
        execution: A call of a converted model computes the integers of ONNX Runtime (`"integers"`), or runs the
            exported graph in floats that are rounded after each operator (`"graph"`).
        tolerance: Largest difference between a converted model and its ONNX file that `export_onnx` accepts, relative
            to the largest output. One rounding tie that a kernel decides otherwise moves later values by whole steps.
    """

    name: str
    package: str
    make_quantizer: Callable[[str, int, Collection[str]], Any]
    activations: tuple[str, ...] = ("asymmetric", "symmetric")
    weight_bits: tuple[int, ...] = (7, 8)
    execution: Literal["integers", "graph"] = "integers"
    tolerance: float = 0.1

    def check_grids(self, activations: str, weight_bits: int) -> None:
        """Raise unless the runtime has kernels for these grids.

        Raises:
            ArgumentError: It has none; the message lists the grids that it has.
        """
        check_choice("activations", activations, self.activations)
        if not isinstance(weight_bits, int) or weight_bits not in self.weight_bits:
            listed = " or ".join(map(str, self.weight_bits))
            raise ArgumentError(
                f"`weight_bits` must be {listed} for target {self.name!r}, got {shown(weight_bits)}. "
                f"Pass weight_bits={self.weight_bits[0]}."
            )

    def check_installed(self) -> None:
        """Raise unless the package of the runtime can be imported.

        Raises:
            MissingDependencyError: It is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise MissingDependencyError(
                f"`target` {self.name!r} needs the package `{self.package}`, which is not installed. "
                f"Run: pip install {self.package}"
            )


@functools.cache
def known_backends() -> dict[str, Backend]:
    """Return all backends by name: the `BACKEND` of every file in `quantize/backends/`."""
    folder = importlib.import_module("hessprune.quantize.backends")
    files = [
        importlib.import_module(f"{folder.__name__}.{file.name}") for file in pkgutil.iter_modules(folder.__path__)
    ]
    backends = {file.BACKEND.name: file.BACKEND for file in files}
    assert len(backends) == len(files), "two files of quantize/backends/ have one name"
    return backends


def find_backend(target: str) -> Backend:
    """Return the backend of a name.

    Raises:
        ArgumentError: There is none; the message lists the known names.

    Example:
        >>> from hessprune.quantize.backend import find_backend
        >>> find_backend("x86-inductor").package
        'torchao'
    """
    check_choice("target", target, known_backends())
    return known_backends()[target]
