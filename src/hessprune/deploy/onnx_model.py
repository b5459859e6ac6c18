"""ONNX files in ONNX Runtime, called like modules."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.deploy.outputs import KEY, structured
from hessprune.errors import ArgumentError, DataError
from hessprune.foundation.checks import optional_import
from hessprune.foundation.formatting import first_line
from hessprune.foundation.trees import describe, tensors_in

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
        return structured(self._structure, onnx_run(self._session, kwargs or args))


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
    options.log_severity_level = 4  # its errors are raised
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


def onnx_run(session: Any, inputs: Any) -> list[Tensor]:
    """Return the outputs of a session.

    Raises:
        DataError: The inputs do not fit the file.
    """
    feed = onnx_feed(session, inputs)
    try:
        return [torch.from_numpy(output) for output in session.run(None, feed)]
    except Exception as error:  # ONNX Runtime raises its own classes
        reason = first_line(error).rpartition("Status Message: ")[2]
        raise DataError(
            f"inputs must fit the ONNX file, got {describe(inputs)}: {reason[:120]}. Give numbers and sizes that the "
            "exported model takes."
        ) from error


def onnx_feed(session: Any, inputs: Any) -> dict[str, Any]:
    """Return the arrays of `inputs` under the input names of a session: by key for a dict, else in order.

    Raises:
        DataError: The session has another number of inputs, or inputs of other types or sizes.
    """
    nodes = session.get_inputs()
    names, tensors = [node.name for node in nodes], list(tensors_in(inputs))
    if isinstance(inputs, Mapping) and set(names) <= set(inputs):
        tensors = [inputs[name] for name in names]
    if len(names) != len(tensors):
        raise DataError(
            f"`example_inputs` must hold {len(names)} tensors ({', '.join(names)}), got {len(tensors)}. "
            "Pass the tensors that the file was exported with."
        )
    sizes: dict[str, int] = {}
    for node, tensor in zip(nodes, tensors, strict=True):
        _check_fits(node, tensor, sizes)
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _check_fits(node: Any, tensor: Tensor, sizes: dict[str, int]) -> None:
    """Raise unless a tensor has the type and the sizes of an input of a file; those with a name are any, but one."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    dtype, given = TYPES.get(dtype, dtype), str(tensor.dtype).removeprefix("torch.")
    pairs = zip(node.shape, tensor.shape, strict=False)
    wanted = [sizes.setdefault(size, n) if isinstance(size, str) else size or n for size, n in pairs]
    wrong = [axis for axis, size in enumerate(wanted) if size != tensor.shape[axis]]
    if dtype == given and len(node.shape) == tensor.dim() and not wrong:
        return
    remedy = "Resize inputs, or export the file with an example of that size."
    if dtype != given:
        remedy = f"Convert inputs: x.to(torch.{dtype})."
    elif wrong == [0]:
        dynamic = ", or export the file with dynamic_batch=True" if isinstance(node.shape[0], int) else ""
        remedy = f"Pass {wanted[0]} samples{dynamic}."
    shape = ", ".join(map(str, node.shape))
    raise DataError(
        f"inputs must fit the ONNX file, whose '{node.name}' is {dtype} ({shape}), got {describe(tensor)}. {remedy}"
    )
