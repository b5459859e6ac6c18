"""Models called on any kind of inputs, and copied without numbers."""

import copy
import warnings
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hessprune.errors import DataError, HessPruneError
from hessprune.foundation.arguments import as_given
from hessprune.foundation.caches import with_cache, without_cache, without_cache_argument
from hessprune.foundation.experts import experts_run_by, put_experts_side_by_side
from hessprune.foundation.formatting import first_line
from hessprune.foundation.integers import RealIntegers, inputs_with_integers, with_integers
from hessprune.foundation.misfits import failing_module, misfit_remedy
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.tensors import named_tensors
from hessprune.foundation.texts import tokens_remedy
from hessprune.foundation.trees import describe, to_device

T = TypeVar("T")

DEVICE_FAILURES = (torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors of a forward pass that are no fault of the model and its inputs."""
_OTHER_CAUSES = (HessPruneError, *DEVICE_FAILURES)
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AssertionError)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call `model` on a tensor, a tuple of positional arguments, or a dict of keyword arguments or as the argument.

    Decoders keep no cache of keys and values; experts of a mixture run one after the other.
    """
    with without_cache(model), experts_run_by(model):
        return _call(model, without_cache_argument(inputs) if isinstance(inputs, Mapping) else inputs)


def call_with_cache(model: nn.Module, inputs: Any) -> Any:
    """Call `model` as `call_model` does, and let a decoder keep its cache."""
    with with_cache(model), experts_run_by(model):
        given = isinstance(inputs, Mapping) and "use_cache" in inputs
        return _call(model, {**inputs, "use_cache": True} if given else inputs)


def _call(model: nn.Module, inputs: Any) -> Any:
    inputs = as_given(model, inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: the tensor itself, `.logits`, `["logits"]`, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        first = output["logits"] if "logits" in output else next(iter(output.values()))
    else:
        first = output.logits if hasattr(output, "logits") else output[0]
    return logits_of(first) if isinstance(first, Mapping | list | tuple) else first


def predict(model: nn.Module, inputs: Any, name: str = "batches") -> Tensor:
    """Return the logits of `model` on `inputs`, with the errors of `forward`."""
    return logits_of(forward(model, inputs, name))


def forward(model: nn.Module, inputs: Any, name: str = "batches") -> Any:
    """Return the whole output of `model` on `inputs`; inputs that do not fit are named instead of torch's traceback.

    Raises:
        DataError: The forward pass fails; the message holds the shapes, the module and torch's own reason.
        AttributeError: The forward has a mistake of its own.
    """
    numbers = tokens_remedy(inputs).strip()
    try:
        return call_model(model, inputs)
    except _OTHER_CAUSES:
        raise
    except (*_MISFITS, AttributeError) as error:
        odd = is_dataclass(inputs) or numbers or isinstance(getattr(error, "obj", None), Tensor)
        if isinstance(error, AttributeError) and not odd:  # a mistake in the forward
            raise
        reason, module = first_line(error), failing_module(model, error)
        remedy = numbers or misfit_remedy(model, inputs, error)
        where = f", in module '{module}'" if module else ""
        raise DataError(
            f"inputs in `{name}` must fit the model, got {describe(inputs)}{where}: {reason}. {remedy}"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer (CPU if it has none)."""
    first = next(iter(model.parameters()), None)
    if first is None:
        first = next(iter(model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert a model in place, and return it; complex numbers become those of parts of that type.

    Example:
        >>> next(to_dtype(nn.Linear(2, 2), torch.float64).parameters()).dtype
        torch.float64
    """

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(dtype.to_complex())
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return model._apply(convert)


def split_name(name: str) -> tuple[str, str]:
    """Split `"layer1.0.conv.weight"` into module and attribute: `("layer1.0.conv", "weight")`."""
    module, _, attribute = name.rpartition(".")
    return module, attribute


def empty_copy(model: nn.Module) -> nn.Module:
    """Copy a model onto the meta device: shapes without numbers."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def dry_run(model: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], T]) -> T:
    """Return `run(copy, inputs)` in evaluation mode: without arithmetic, unless the forward needs real numbers."""
    with torch.no_grad(), evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusals = (RuntimeError, NotImplementedError)  # what the meta device answers to questions about values
        with suppress(*refusals):
            return run(empty_copy(model), to_device(inputs, "meta"))
        with suppress(*refusals), RealIntegers():
            return run(with_integers(model), inputs_with_integers(inputs))
        own = copy.deepcopy(model)
        put_experts_side_by_side(own)
        return run(own, inputs)


def borrowing_copy(model: nn.Module, own: Set[str]) -> nn.Module:
    """Copy a model whose parameters read the numbers of the original, but for those named in `own`: write no others."""
    copied = {id(tensor) for name, tensor in named_tensors(model) if name in own}
    lent = (p for p in model.parameters() if type(p) is nn.Parameter and id(p) not in copied)
    return copy.deepcopy(model, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in lent})


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model, but not its tensors: what a forward leaves in the copy does not reach the model."""
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in named_tensors(model)}
    return copy.deepcopy(model, memo)
