"""ONNX files in ONNX Runtime, called like modules."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hessprune.deploy.outputs import KEY, structured
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.trees import tensors_in

TYPES = {"float": "float32", "double": "float64"}
"""Names of torch for those of ONNX Runtime, where they differ."""


class OnnxModel(nn.Module):
    """An ONNX file as a module; its forward returns what the exported model returned.

    Files that `export_onnx` did not write return a tensor, or a tuple of all outputs.

    Args:
        path: The file.
        num_threads: CPU threads of ONNX Runtime.
    """

    def __init__(self, path: Path | str, num_threads: int = 1) -> None:
        super().__init__()
        self._session = onnx_session(Path(path), num_threads)
        self._structure = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the file."""
        outputs = self._session.run(None, onnx_feed(self._session, kwargs or args))
        return structured(self._structure, [torch.from_numpy(output) for output in outputs])


def onnx_session(path: Path | bytes, num_threads: int = 1, *, profile: Path | None = None) -> Any:
    """Open an ONNX file in ONNX Runtime on the CPU, with its own thread pool and without its chatter.

    Args:
        path: The file, or its content.
        num_threads: CPU threads.
        profile: Prefix of a file to which ONNX Runtime writes the time of every operator; none by default.

    Raises:
        ArgumentError: The file is missing or not ONNX.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runtime = optional_import("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
    try:
        return runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own classes, none of them importable by a stable name
        raise ArgumentError(
            f"`model` must be a module or an ONNX file, got {_shown(path)} ({error}). Check the path."
        ) from error


def _shown(path: Path | bytes) -> str:
    return f"{len(path)} bytes" if isinstance(path, bytes) else f"'{path}'"


def onnx_feed(session: Any, inputs: Any) -> dict[str, Any]:
    """Return the arrays of `inputs` under the input names of a session: by key for a dict, else in order.

    Raises:
        DataError: The session has another number of inputs.
    """
    names = [node.name for node in session.get_inputs()]
    tensors = [tensor.detach().cpu().numpy() for tensor in tensors_in(inputs)]
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    if len(names) != len(tensors):
        raise DataError(
            f"`example_inputs` must hold {len(names)} tensors ({', '.join(names)}), got {len(tensors)}. "
            "Pass the tensors that the file was exported with."
        )
    return dict(zip(names, tensors, strict=True))
