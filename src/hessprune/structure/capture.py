"""Capture a model as a flat ATen graph with `torch.export`, without touching its source or its state."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.arguments import as_given
from hessprune.foundation.bypass import compiler_at_work
from hessprune.foundation.caches import without_cache, without_cache_argument
from hessprune.foundation.experts import BY_GROUP, experts_run_by
from hessprune.foundation.formatting import first_line
from hessprune.foundation.misfits import dtype_remedy, integers_remedy, whole_remedy
from hessprune.foundation.modules import (
    DEVICE_FAILURES,
    call_model,
    device_of,
    empty_copy,
    shared_copy,
)
from hessprune.foundation.multihead import free_heads, without_causal_guess
from hessprune.foundation.quiet import quiet
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.texts import tokens_remedy
from hessprune.foundation.trees import describe, leading_size, tensors_in, to_device
from hessprune.structure.real_sizes import has_open_sizes, settle_sizes


def capture(model: nn.Module, example_inputs: Any) -> ExportedProgram:
    """Export `model` in evaluation mode on `example_inputs` (a tensor, a tuple, or a dict of keyword arguments).

    The inputs may lie on another device than the model: only their shapes matter.

    Raises:
        ArgumentError: There are no inputs, or none for a sample.
        UnsupportedModelError: The forward fails, or its control flow depends on data.
    """
    if not leading_size(example_inputs):
        raise ArgumentError(
            f"`example_inputs` must hold a sample as the model takes it, got {describe(example_inputs)}."
            f"{tokens_remedy(example_inputs) or ' Pass a tensor, a tuple or a dict of tensors of a batch.'}"
        )
    example_inputs = to_device(example_inputs, device_of(model))
    args, kwargs = _as_call(as_given(model, example_inputs))
    own = shared_copy(model)
    with evaluation_mode(own), torch.no_grad(), quiet(), compiler_at_work():
        try:
            return _program(own, args, kwargs)
        except UnsupportedModelError:
            raise
        except Exception as error:  # the user's forward may raise anything
            output = _checked_run(model, example_inputs)
            _check_registered({"inputs": example_inputs, "outputs": output}, error)
            raise UnsupportedModelError(
                f"the model must be capturable by torch.export, but {_user_frame(error)}{first_line(error)}. "
                f"Replace control flow that depends on tensor values, or prune the submodules one by one."
            ) from error


def capture_training(model: nn.Module, example_inputs: Any) -> ExportedProgram | None:
    """Export `model` in training mode, with branches that evaluation skips; return None if the export fails."""
    trained = empty_copy(model).train()
    args, kwargs = _as_call(to_device(as_given(model, example_inputs), "meta"))
    with torch.no_grad(), quiet(), compiler_at_work():
        try:
            return _program(trained, args, kwargs)
        except Exception:  # the graph of evaluation suffices
            return None


def _program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    """Export a model, which is changed; results that nothing reads are left out."""
    free_heads(model)
    with without_cache(model), without_causal_guess(), _without_idle_casts(), experts_run_by(model, BY_GROUP):
        program = torch.export.export(model, args, kwargs, strict=False)
    program.graph.eliminate_dead_code()
    _name_as_in(model, program)
    if has_open_sizes(program):
        settle_sizes(program, args, kwargs)
    return program


@contextmanager
def _without_idle_casts() -> Iterator[None]:
    """Let a forward cast modules to the type that they have (`self.router.to(torch.float32)`); one thread at a time.

    torch swaps the parameters then, which an exporter holds.
    """
    apply = nn.Module._apply

    def applied(module: nn.Module, fn: Any, recurse: bool = True) -> Any:
        before = [*module.parameters(), *module.buffers()]
        pairs = [(tensor, fn(tensor)) for tensor in before]
        is_idle = all((a.dtype, a.device) == (b.dtype, b.device) for a, b in pairs)
        return module if is_idle else apply(module, fn, recurse)

    nn.Module._apply = applied  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]


def _name_as_in(model: nn.Module, program: ExportedProgram) -> None:
    """Name the modules of calls as the model does.

    Where the model shares a module, torch writes down how the forward reached one: `layers.slice(None, 2, None).0`.
    """
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        for key, (name, kind) in stack.items():
            if "slice(" in name:
                stack[key] = (_own_name(model, name), kind)


def _own_name(model: nn.Module, name: str) -> str:
    """Return a module's own name, with `layers.1` for `layers.slice(1, None, None).0`."""
    own, layers = "", {layer: layer_name for layer_name, layer in model.named_modules()}
    module: Any = model
    for written in re.findall(r"slice\([^)]*\)|[^.]+", name):
        ends = [None if end == "None" else int(end) for end in re.findall(r"None|-?\d+", written)]
        module = module[slice(*ends)] if written.startswith("slice(") else getattr(module, written)
        own = layers.get(module, own)
    return own


def _checked_run(model: nn.Module, example_inputs: Any) -> Any:
    """Return the outputs, or raise an error that names the inputs if the model does not run on them."""
    try:
        return call_model(model, example_inputs)
    except DEVICE_FAILURES:
        raise
    except Exception as error:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example_inputs))
        remedy = dtype_remedy(model, example_inputs) or whole_remedy(model, example_inputs)
        remedy = remedy or integers_remedy(model, example_inputs, error)
        raise UnsupportedModelError(
            f"`example_inputs` must fit the model's forward, got shapes {shapes}: {first_line(error)}. "
            f"{remedy or 'Pass a batch exactly as the model takes it.'}"
        ) from error


def _check_registered(trees: Mapping[str, Any], error: Exception) -> None:
    """Raise an error that names a dataclass of the inputs or the outputs, if torch cannot look into it.

    Raises:
        UnsupportedModelError: It is not registered.
    """
    for place, tree in trees.items():
        for leaf in (leaf for leaf in tree_leaves(tree) if is_dataclass(leaf)):
            name = type(leaf).__name__
            raise UnsupportedModelError(
                f"dataclasses of {place} must be registered for torch.export, got {name}, which is not. "
                f"Call torch.export.register_dataclass({name}) once."
            ) from error


def _as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments for a tensor, a tuple or a dict."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), without_cache_argument(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)), {}


def _user_frame(error: BaseException) -> str:
    """Name the last line of user code in the traceback, at which the capture stopped."""
    frame, place = error.__traceback__, ""
    while frame is not None:
        code = frame.tb_frame.f_code
        if code.co_name == "forward" and "/torch/" not in code.co_filename:
            owner = frame.tb_frame.f_locals.get(next(iter(code.co_varnames), ""))  # users may not say `self`
            name = f"{type(owner).__name__}.forward" if isinstance(owner, nn.Module) else "forward"
            place = f"{name} (line {frame.tb_lineno} of {code.co_filename.rsplit('/', 1)[-1]}) stopped it: "
        frame = frame.tb_next
    return place or "it failed: "
