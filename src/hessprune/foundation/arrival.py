"""Models as users bring them: compiled, wrapped for several devices, averaged, without data, or no models at all.

Every public function passes its models through `arrived`. The rooms behind it see plain modules: no wrappers, own
modules and buffers, and parameters that share memory with those of the user but not their flags. So whatever a forward
writes into its buffers and attributes stays in the copy.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.bypass import plain_forwards
from hessprune.foundation.formatting import first_line
from hessprune.foundation.modules import device_of, forward
from hessprune.foundation.parametrised import check_no_masks, naming_computed_weights
from hessprune.foundation.quiet import quiet
from hessprune.foundation.sharded import is_sharded
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.trees import tensors_in, to_device
from hessprune.foundation.wrappers import is_wrapper, unwrapped


@contextmanager
def received(model: nn.Module) -> Iterator[nn.Module]:
    """Lend the model as `arrived` returns it, outside of inference mode."""
    with torch.inference_mode(False):
        yield arrived(model)


@contextmanager
def watched(model: nn.Module) -> Iterator[nn.Module]:
    """Lend a model without masks, with forwards that hide nothing from us.

    Raises:
        UnsupportedModelError: A weight is masked.
    """
    with received(model) as plain, plain_forwards(), naming_computed_weights(model):
        check_no_masks(model)
        yield plain


def arrived(model: nn.Module) -> nn.Module:
    """Return a plain model in place of the user's: a copy without wrappers that shares its parameters' memory.

    Raises:
        ArgumentError: The argument is no module.
        UnsupportedModelError: Lazy layers have seen no data, some attribute of the model cannot be copied, or it holds
            TorchScript, or is spread over processes.
    """
    _check_module(model)
    _check_initialised(model)
    if is_sharded(model):
        raise UnsupportedModelError(
            "`model` must be whole here, got parameters that fully_shard spreads over processes. Find groups, plan and "
            "cut before fully_shard; hp.saliency scores the sharded model."
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"`model` must be made of Python modules, got TorchScript in module {name!r}. Pass the model that "
                "torch.jit was given."
            )
    memo = _tensors_to_lend(model)
    try:
        with quiet():  # captured graphs warn while they are copied
            for module in reversed(list(model.modules())):  # wrappers inside others first
                if is_wrapper(module):
                    memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
            return _without_compiled_forwards(copy.deepcopy(model, memo))
    except Exception as error:  # an attribute may be anything
        raise UnsupportedModelError(_not_copyable(model, error)) from error


def observed(model: nn.Module) -> nn.Module:
    """Return a plain copy of a model that only runs, or the model itself if it cannot be copied.

    Raises:
        ArgumentError: The argument is no module.
        UnsupportedModelError: Lazy layers have seen no data.
    """
    _check_module(model)
    _check_initialised(model)
    try:
        return arrived(model)
    except UnsupportedModelError:
        return unwrapped(model)


def _check_module(model: object) -> None:
    """Raise unless the argument is a module.

    Raises:
        ArgumentError: It is something else.
    """
    if not isinstance(model, nn.Module):
        remedy = "program.module()" if isinstance(model, torch.export.ExportedProgram) else "the module itself"
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise ArgumentError(f"`model` must be a torch.nn.Module, got {kind}. Pass {remedy}.")


def _without_compiled_forwards(model: nn.Module) -> nn.Module:
    """Undo `module.forward = torch.compile(module.forward)`, which would run the module of the user."""
    for module in model.modules():
        compiled = getattr(vars(module).get("forward"), "_torchdynamo_orig_callable", None)
        if isinstance(compiled, MethodType):
            module.forward = MethodType(compiled.__func__, module)
    return model


def materialise(model: nn.Module, example: Callable[[], Any]) -> None:
    """Run lazy layers once on `example()`, so that they get their parameters; other models are left alone."""
    if any(_lazy_modules(model)):
        with torch.no_grad(), evaluation_mode(model):
            forward(model, to_device(example(), device_of(model)), "example_inputs")


def _check_initialised(model: nn.Module) -> None:
    """Raise unless all layers have their parameters.

    Raises:
        UnsupportedModelError: Lazy layers have seen no data.
    """
    found = list(_lazy_modules(model))
    if found:
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UnsupportedModelError(
            f"`model` must have its parameters, got lazy ones without data in module {found[0]}{others}. Run one batch "
            "through the model first: model(inputs)."
        )


def _lazy_modules(model: nn.Module) -> Iterator[str]:
    """Yield the modules with parameters or buffers that wait for a first batch, each with its class."""
    for name, module in model.named_modules():
        tensors = (*module._parameters.values(), *module._buffers.values())
        if any(is_lazy(tensor) for tensor in tensors if tensor is not None):
            yield f"{name!r} ({type(module).__name__})"


def plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under the name that it has once wrappers are gone; a wrapper has the name of its content."""
    plain = {"": ""}
    for name, module in model.named_modules(remove_duplicate=False):
        parent, _, last = name.rpartition(".")
        if name:
            inside = is_wrapper(model.get_submodule(parent))
            plain[name] = plain[parent] if inside else f"{plain[parent]}.{last}".lstrip(".")
        yield plain[name], module


def _tensors_to_lend(model: nn.Module) -> dict[int, Any]:
    """Return what stands for each tensor of a model in a copy, by identity."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in (value for value in module._parameters.values() if value is not None):
            memo[id(parameter)] = _lent(parameter)
        for buffer in (value for value in module._buffers.values() if value is not None):
            memo[id(buffer)] = buffer.detach().clone()
        for tensor in tensors_in([value for name, value in vars(module).items() if name not in _TABLES]):
            if not tensor.is_leaf or tensor.is_inference():  # left by a forward; torch refuses to copy the former
                memo.setdefault(id(tensor), tensor.detach().clone())
    return memo


_TABLES = ("_parameters", "_buffers", "_modules")


def _lent(parameter: Tensor) -> Tensor:
    """Return a parameter over the same memory, with its own flags; parameters of other classes stay themselves."""
    if type(parameter) is not nn.Parameter:
        return parameter
    values = parameter.detach().clone() if parameter.is_inference() else parameter.detach()
    return nn.Parameter(values, requires_grad=parameter.requires_grad)


def _not_copyable(model: nn.Module, error: Exception) -> str:
    """Name the attribute that stops a copy, and the remedy."""
    place = next((f" in '{where}'" for where in _uncopyable(model)), "")
    reason = first_line(error)
    return (
        f"`model` must be copyable by copy.deepcopy, got {type(error).__name__}{place}: {reason}. "
        "Delete the attribute, or give its class a `__deepcopy__`."
    )


def _uncopyable(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                if attribute not in _TABLES:
                    copy.deepcopy(value)
            except Exception:  # this attribute is the cause
                yield f"{name}.{attribute}".lstrip(".")
