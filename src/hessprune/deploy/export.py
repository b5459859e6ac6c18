"""Export to ONNX, and check that ONNX Runtime returns the outputs of torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.deploy.axes import Axes, halved, positional, resized, shuffled
from hessprune.deploy.onnx_model import onnx_feed, onnx_session
from hessprune.deploy.outputs import KEY, structure_of
from hessprune.errors import ArgumentError, UnsupportedModelError, VerificationError
from hessprune.foundation.arguments import as_given
from hessprune.foundation.arrival import observed
from hessprune.foundation.caches import without_cache
from hessprune.foundation.checks import check_numbers, check_range, optional_import
from hessprune.foundation.experts import BY_BATCH, experts_run_by
from hessprune.foundation.files import staging, writable_file
from hessprune.foundation.modules import call_model, device_of, forward
from hessprune.foundation.multihead import without_causal_guess
from hessprune.foundation.parametrised import merging_calls
from hessprune.foundation.progress import progress_bar
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, shared_in, tensors_in, to_device

OPSET = 20  # the newest one that ONNX Runtime runs without conversion and the exporter writes natively
MAX_INLINE_BYTES = 1_500_000_000  # a protobuf ends at 2 GiB; larger weights go to `<name>.data` beside the file
SAMPLES = 8
"""Other samples than the example that a quantised model is checked on, at least."""
REMEDY = "Remove data-dependent Python from its forward"


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    dynamic_batch: bool = True,
    dynamic_length: bool = False,
    check: bool = True,
    tolerance: float | None = None,
) -> Path:
    """Write `model` in evaluation mode as ONNX, with BatchNorm folded into the preceding convolutions.

    The check runs the file in ONNX Runtime on the example and, with a dynamic batch, on batches of one sample more than
    the example and of 1 (unless integers that belong to all samples may name the others, as edges of a graph do); with
    a dynamic length, also on samples of half the length; for quantised models, also on samples that hold the example's
    numbers in another order. Each output y of torch and ŷ of ONNX Runtime must satisfy `max|ŷ − y| ≤ tolerance·max|y|`.
    An existing file is replaced only after the check.

    Cost: an export, and a few runs of model and file for the check.

    Args:
        model: Any model that `torch.export` captures; stays untouched.
        example_inputs: A tensor, tuple or dict. With a dynamic batch, the first axis of a tensor is its batch axis if
            it is as long as the first axis of the first tensor.
        path: File to write, usually `….onnx`; its folder is created.
        dynamic_batch: Accept any batch size, not only that of the example.
        dynamic_length: Accept sequences of any length: the second axis of a tensor is their axis if it is as long as
            the second axis of the first tensor.
        check: Compare with torch; this needs ONNX Runtime.
        tolerance: Largest difference, relative to the largest output. 1e-4 by default, 1e-2 in half precision; for
            quantised models the backend's tolerance, 0.1, because one rounding tie that a processor decides otherwise
            moves later values by whole steps.

    Returns:
        The path.

    Raises:
        ArgumentError: `tolerance` is out of range, or the model is prepared for quantisation but not converted.
        DataError: The example does not fit the model.
        MissingDependencyError: onnx, onnxscript or, for the check, onnxruntime is not installed.
        NumericalError: Weights hold no numbers.
        OutputError: The folder cannot be written.
        UnsupportedModelError: The model cannot be captured, has an operator without an ONNX counterpart, or is in a
            precision that ONNX Runtime does not run.
        VerificationError: ONNX Runtime does not return what torch returns.

    Example:
        >>> import tempfile, torch, hessprune as hp
        >>> file = hp.export_onnx(torch.nn.Linear(4, 2), torch.randn(1, 4), tempfile.mkdtemp() + "/model.onnx")
        >>> file.name
        'model.onnx'
    """
    tolerance = _tolerance(model) if tolerance is None else tolerance
    check_range("tolerance", tolerance, low=0)
    model = observed(model)
    check_numbers(model)
    if check and torch.bfloat16 in _dtypes(model):
        raise UnsupportedModelError(_no_kernels(model, "it has no kernels for bfloat16"))
    for package in ("onnx", "onnxscript", *(("onnxruntime",) if check else ())):
        optional_import(package, "export")
    path = writable_file(path)
    example = to_device(example_inputs, device_of(model))
    axes = Axes(batch=dynamic_batch, length=dynamic_length)
    with staging(path.parent) as folder, progress_bar("exporting to ONNX", 2) as bar:
        write_onnx(model, example, folder / path.name, axes=axes, remedy=f"{REMEDY}{axes.fewer(' or pass')}.")
        bar.advance(1, "written")
        if check:
            with seeded(0), evaluation_mode(model), torch.no_grad():
                _check_opens(model, folder / path.name)
                _compare(model, folder / path.name, example, axes, tolerance)
        bar.advance(1, "checked")
    return path


def _tolerance(model: nn.Module) -> float:
    """Return the default tolerance of a model, and refuse a model that is prepared but not converted."""
    if getattr(model, "stage", None) == "prepared":
        raise ArgumentError(
            "`model` must be converted to integers first, got a prepared one. Call hp.convert_qat(model)."
        )
    default = 1e-2 if _dtypes(model) & {torch.float16, torch.bfloat16} else 1e-4
    return getattr(model, "export_tolerance", default)


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {value.dtype for value in model.parameters() if value.is_floating_point()}


def _check_opens(model: nn.Module, path: Path) -> None:
    """Raise if ONNX Runtime has no kernels for the precision of the model.

    Raises:
        UnsupportedModelError: A model in another precision than float32 does not open.
    """
    if _dtypes(model) <= {torch.float32}:
        return
    try:
        onnx_session(path)
    except ArgumentError as error:
        raise UnsupportedModelError(_no_kernels(model, _first_line(error))) from error


def _no_kernels(model: nn.Module, reason: str) -> str:
    named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _dtypes(model)))
    return (
        f"`model` must be in a precision that ONNX Runtime runs, got {named} ({reason}). Call model.float() and pass "
        "float32 inputs, or pass check=False."
    )


def write_onnx(model: nn.Module, example: Any, path: Path, *, axes: Axes, remedy: str) -> None:
    """Write `model` in evaluation mode as ONNX, without a check; `remedy` ends the error if torch cannot capture it."""
    with seeded(0), evaluation_mode(model), torch.no_grad():
        output, example = forward(model, example, "example_inputs"), as_given(model, example)
        # torch.export takes an axis of length 1 for a constant
        traced = resized(example, 2) if axes.batch and leading_size(example) == 1 else example
        captured = capture(model, traced, axes.of(traced), remedy=remedy)
        program = _translated(model, captured, axes.of(traced, names=True))
        if getattr(model, "target", None) == "onnxruntime":
            _keep_sums(program.model.graph)
        program.model.metadata_props[KEY] = structure_of(output)
        program.save(path, external_data=_size_bytes(model) > MAX_INLINE_BYTES)


def _size_bytes(model: nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values())


def capture(model: nn.Module, example: Any, axes: Any, *, remedy: str) -> torch.export.ExportedProgram:
    """Capture the model's graph, with a symbolic batch axis if `axes` name one.

    Args:
        model: In evaluation mode.
        example: A tensor, tuple or dict.
        axes: From `Axes.of`, or None for the sizes of the example only.
        remedy: Advice at the end of the error; it names the caller's own arguments.

    Raises:
        UnsupportedModelError: torch.export cannot capture the model.
    """
    args, kwargs = ((), dict(example)) if isinstance(example, Mapping) else (positional(example), {})
    try:
        # the loop over experts depends on which of them the words choose
        with quiet(), without_cache(model), without_causal_guess(), experts_run_by(model, BY_BATCH):
            return torch.export.export(model, args, kwargs, dynamic_shapes=axes, strict=False)
    except Exception as error:  # the exporter passes on all errors of the model's own code
        sizes = " with any batch size" if axes else ""
        raise UnsupportedModelError(
            f"`model` must be capturable by torch.export{sizes}, got: {_first_line(error)}. {remedy}"
        ) from error


def _translated(model: nn.Module, captured: torch.export.ExportedProgram, axes: Any) -> torch.onnx.ONNXProgram:
    """Translate a captured graph to ONNX, without the exporter's metadata about source files."""
    outputs = [spec for spec in captured.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    try:
        with quiet():
            program = torch.onnx.export(
                captured,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=axes,  # once more, so that the axis keeps its name
                output_names=["logits"] if len(outputs) == 1 else None,
            )
    except Exception as error:  # a family of classes private to torch.onnx
        calls = merging_calls(model)
        verb = f"Merge computed weights of the dense model before pruning ({calls}), or replace" if calls else "Replace"
        raise UnsupportedModelError(
            f"`model` must have an ONNX counterpart, got: {_first_line(error)}. {verb} that operator in its forward."
        ) from error
    assert program is not None
    graph = program.model.graph
    for item in (graph, *graph.all_nodes(), *graph.inputs, *graph.outputs, *graph.initializers.values()):
        item.metadata_props.clear()
    for node in graph.all_nodes():
        for value in node.outputs:
            value.metadata_props.clear()
    return program


def _keep_sums(graph: Any) -> None:
    """Write each sum in front of a layer norm as `Sum`, which computes the same.

    ONNX Runtime fuses an `Add` there with the norm. On the CPU the fused kernel, SkipLayerNormalization, takes five
    times as long as the two that it replaces: 0.15 ms for 64 positions of 384 channels, a fifth of a small encoder in
    integers.
    """
    for node in graph.all_nodes():
        if node.op_type == "Add" and any(use.node.op_type == "LayerNormalization" for use in node.outputs[0].uses()):
            node.op_type = "Sum"


def _compare(model: nn.Module, path: Path, example: Any, axes: Axes, tolerance: float) -> None:
    """Raise unless ONNX Runtime and torch agree on the example, and on inputs of other sizes."""
    session = onnx_session(path)
    size = leading_size(example)
    may_index = any(not tensor.is_floating_point() for tensor in shared_in(example))  # edges of a graph, into its nodes
    sizes = (size, *(() if may_index else (1,)), size + 1) if axes.batch else (size,)
    tried = [resized(example, batch_size) for batch_size in sizes]
    tried += [halved(example)] if axes.length else []
    if hasattr(model, "export_tolerance"):  # integers overflow for some samples only
        tried.append(shuffled(resized(example, max(size, SAMPLES) if axes.batch else size)))
    for inputs in tried:
        batch_size = leading_size(inputs)
        remedy = f"{axes.fewer('Pass') or 'Replace that operator in its forward'}."
        try:
            expected = [output.detach().cpu() for output in tensors_in(call_model(model, inputs))]
        except Exception as error:  # of the model's own code, which took the example
            raise UnsupportedModelError(
                f"`model` must run a batch of {batch_size}, got: {_first_line(error)}. {remedy}"
            ) from error
        try:
            outputs = [torch.from_numpy(output) for output in session.run(None, onnx_feed(session, inputs))]
        except Exception as error:  # ONNX Runtime raises its own classes
            raise VerificationError(
                f"ONNX Runtime must run a batch of {batch_size}, got: {_first_line(error)}. {remedy}"
            ) from error
        for output, reference in zip(outputs, expected, strict=True):
            _check_close(output, reference, batch_size, tolerance)


def _check_close(output: Tensor, expected: Tensor, batch_size: int, tolerance: float) -> None:
    if output.shape != expected.shape:
        difference = f"shape {tuple(output.shape)} for {tuple(expected.shape)}"
    else:
        largest = float((output.double() - expected.double()).abs().max())
        scale = float(expected.double().abs().max())
        if largest <= tolerance * max(scale, 1e-6):
            return
        difference = f"a difference of {largest:.2g} beside outputs of up to {scale:.2g}"
    raise VerificationError(
        f"ONNX Runtime must return what torch returns within {tolerance:g} of its scale, got {difference} for a batch "
        f"of {batch_size}. Look for randomness or Python branches in the forward, or raise `tolerance`."
    )


def _first_line(error: BaseException) -> str:
    """Return the first line of the original error, below all errors that wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"
