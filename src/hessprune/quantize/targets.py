"""The runtimes for which a network can be quantised."""

import importlib.util
from typing import Literal

from hessprune.errors import MissingDependencyError
from hessprune.foundation.checks import check_choice

Target = Literal["onnxruntime", "x86-inductor", "openvino"]
TARGETS = {"onnxruntime": "onnxruntime", "x86-inductor": "torchao", "openvino": "openvino"}  # and the package it needs


def check_target(target: str) -> None:
    """Raise unless a target is known and installed.

    Raises:
        ArgumentError: It is not known.
        MissingDependencyError: Its package is missing.
    """
    check_choice("target", target, TARGETS)
    package = TARGETS[target]
    if importlib.util.find_spec(package) is None:
        raise MissingDependencyError(
            f"`target` {target!r} needs the package `{package}`, which is not installed. Run: pip install {package}"
        )
