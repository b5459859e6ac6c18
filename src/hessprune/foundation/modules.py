"""Models called on any kind of inputs, and copied without numbers."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hessprune.errors import DataError, HessPruneError
from hessprune.foundation.caches import with_cache, without_cache, without_cache_argument
from hessprune.foundation.experts import experts_run_by, put_experts_side_by_side
from hessprune.foundation.integers import RealIntegers, inputs_with_integers, with_integers
from hessprune.foundation.state import evaluation_mode
from hessprune.foundation.tensors import named_tensors
from hessprune.foundation.texts import has_decoder, tokens_remedy
from hessprune.foundation.trees import describe, tensors_in, to_device

T = TypeVar("T")

CHECK_INPUTS = "Check size, channels and dtype of the inputs."
# What a forward pass may raise through no fault of its inputs.
_OTHER_CAUSES = (HessPruneError, torch.OutOfMemoryError, torch.AcceleratorError)
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


def as_given(model: nn.Module, inputs: Any) -> Any:
    """Return inputs as they are; in a tuple, a dict that is itself the argument of a forward, as in `forward(batch)`.

    Such a forward requires one argument, and takes none that is called as a key.

    Example:
        >>> as_given(nn.ReLU(), {"image": 1}), as_given(nn.ReLU(), {"input": 1})
        (({'image': 1},), {'input': 1})
    """
    return (inputs,) if _argument_of(model, inputs) else inputs


def _argument_of(model: nn.Module, inputs: Any) -> str:
    """Return the name of the argument that a whole dict is; an empty string where its values are arguments."""
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters  # torch.compile's
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters.values() if p.kind in kinds and p.default is inspect.Parameter.empty]
    is_open = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    is_whole = isinstance(inputs, Mapping) and len(required) == 1 and not is_open and not set(inputs) & set(parameters)
    return required[0] if is_whole else ""


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
    """
    numbers = tokens_remedy(inputs).strip()
    odd = is_dataclass(inputs) or numbers  # else an AttributeError is a mistake in the forward
    misfits = (*_MISFITS, AttributeError) if odd else _MISFITS
    try:
        return call_model(model, inputs)
    except _OTHER_CAUSES:
        raise
    except misfits as error:
        remedy = numbers or _dataclass_remedy(inputs) or dtype_remedy(model, inputs) or _pair_remedy(model, inputs)
        remedy = remedy or whole_remedy(model, inputs) or _lengths_remedy(inputs) or batching(inputs, 1).strip()
        reason, module = str(error).strip().partition("\n")[0].rstrip("."), failing_module(model, error)
        where = f", in module '{module}'" if module else ""
        raise DataError(
            f"inputs in `{name}` must fit the model, got {describe(inputs)}{where}: {reason}. {remedy or CHECK_INPUTS}"
        ) from error


def dtype_remedy(model: nn.Module, inputs: Any) -> str:
    """Return the remedy for inputs in another floating-point type than the weights; an empty string if they agree."""
    held = next((value.dtype for value in model.parameters() if value.is_floating_point()), None)
    given = {tensor.dtype for tensor in tensors_in(inputs) if tensor.is_floating_point()}
    if held is None or not given - {held}:
        return ""
    name, other = (str(dtype).removeprefix("torch.") for dtype in (held, min(given - {held}, key=str)))
    call = "model.float()" if other == "float32" else f"model.to(torch.{other})"
    return f"The weights are {name}, the inputs {other}: call {call}, or pass inputs of dtype {name}."


def whole_remedy(model: nn.Module, inputs: Any) -> str:
    """Return the remedy for a dict that is given whole to a forward that may want a value; else an empty string."""
    name = _argument_of(model, inputs)
    return f"The dict is itself '{name}', as no key is called so: if '{name}' is a tensor, rename its key." * bool(name)


def _dataclass_remedy(inputs: Any) -> str:
    """Return the remedy for a dataclass, which a forward receives as it is; an empty string for others."""
    if not is_dataclass(inputs) or isinstance(inputs, Mapping):
        return ""
    return "A dataclass is a single argument: yield a dict of arguments, vars(batch), or (inputs, targets)."


def _pair_remedy(model: nn.Module, inputs: Any) -> str:
    """Return the remedy for inputs of an encoder alone, where a decoder follows; an empty string for others."""
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not is_pair or not isinstance(inputs, Mapping) or has_decoder(inputs):
        return ""
    return "Give `decoder_input_ids` beside the inputs of the encoder."


def _lengths_remedy(inputs: Any) -> str:
    """Return the remedy for tensors of several lengths; an empty string for others."""
    lengths = {len(tensor) for tensor in tensors_in(inputs) if tensor.dim() and len(tensor) > 1}
    if len(lengths) < 2:
        return ""
    return "Give one entry for each sample in every tensor; one of another length than the first is given whole."


def batching(values: Any, axes: int = 0) -> str:
    """Return the remedy for the inputs or targets of a single sample, which have few axes; else an empty string."""
    tensors = list(tensors_in(values))
    single = bool(tensors) and all(tensor.dim() <= axes for tensor in tensors)
    words = axes and any(not tensor.is_floating_point() for tensor in tensors)
    return " Put samples into batches: DataLoader(dataset, batch_size=64)." if single and not words else ""


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module of `model` on the way to `error` (empty for the model itself)."""
    names = {module: name for name, module in model.named_modules() if name}
    innermost, frame = "", error.__traceback__
    while frame is not None:
        # Only the module itself: hashing an arbitrary `self` could call the user's code.
        owner = frame.tb_frame.f_locals.get("self")
        innermost = names.get(owner, innermost) if isinstance(owner, nn.Module) else innermost
        frame = frame.tb_next
    return innermost


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
