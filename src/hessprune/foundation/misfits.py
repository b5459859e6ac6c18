"""Inputs that do not fit a model: where they failed, and what to do."""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from hessprune.foundation.arguments import argument_of
from hessprune.foundation.texts import has_decoder
from hessprune.foundation.trees import leading_size, tensors_in

_PUT = "Put samples into batches: DataLoader(dataset, batch_size=64), or [X] for a tensor X of all samples."


def misfit_remedy(model: nn.Module, inputs: Any, error: Exception) -> str:
    """Return the remedy for inputs on which the forward of a model failed."""
    return (
        _dataclass_remedy(inputs)
        or _attribute_remedy(error)
        or dtype_remedy(model, inputs)
        or _pair_remedy(model, inputs)
        or whole_remedy(model, inputs)
        or _rows_remedy(model, inputs, error)
        or _lengths_remedy(inputs)
        or batching(inputs, 1).strip()
        or (_PUT * _lacks_batch(error))
        or integers_remedy(model, inputs, error)
        or "Check size, channels and dtype of the inputs."
    )


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
    name = argument_of(model, inputs) if isinstance(inputs, Mapping) else ""
    return f"The dict is itself '{name}', as no key is called so: if '{name}' is a tensor, rename its key." * bool(name)


def _dataclass_remedy(inputs: Any) -> str:
    """Return the remedy for a dataclass, which a forward receives as it is; an empty string for others."""
    if not is_dataclass(inputs) or isinstance(inputs, Mapping):
        return ""
    return "A dataclass is a single argument: yield a dict of arguments, vars(batch), or (inputs, targets)."


def _attribute_remedy(error: Exception) -> str:
    """Return the remedy for a forward that looks for a part of its argument in a tensor; else an empty string."""
    if not isinstance(error, AttributeError) or not isinstance(error.obj, Tensor):
        return ""
    return f"The forward reads '{error.name}' of a tensor: if it takes a whole batch, yield (batch, targets)."


def _pair_remedy(model: nn.Module, inputs: Any) -> str:
    """Return the remedy for inputs of an encoder alone, where a decoder follows; an empty string for others."""
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not is_pair or not isinstance(inputs, Mapping) or has_decoder(inputs):
        return ""
    return "Give `decoder_input_ids` beside the inputs of the encoder."


def _rows_remedy(model: nn.Module, inputs: Any, error: Exception) -> str:
    """Return the remedy for numbers of rows, as of edges, that point at samples left out; else an empty string."""
    tensors, names = list(tensors_in(inputs)), dict(model.named_modules())
    is_embedding = isinstance(names.get(failing_module(model, error)), nn.Embedding | nn.EmbeddingBag)
    if not tensors or is_embedding or not re.search("out of (bounds|range)", str(error)):
        return ""
    is_graph = tensors[0].is_floating_point() and any(
        not tensor.is_floating_point() and bool((tensor >= leading_size(inputs)).any()) for tensor in tensors
    )
    if not is_graph:
        return ""
    return (
        "Rows are samples, of which some are taken: give graphs an axis of their own, (N, nodes, width) and (N, 2, "
        "edges); or go by method='magnitude', compensate=False."
    )


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
    return f" {_PUT}" if single and not words else ""


def _lacks_batch(error: BaseException) -> bool:
    """Return whether inputs had one axis less than a convolution, a norm or a forward takes."""
    frame = error.__traceback__
    while frame is not None:
        held = list(frame.tb_frame.f_locals.values())
        layer = held[0] if held and isinstance(held[0], nn.Conv1d | nn.Conv2d | nn.Conv3d) else None
        given = next((value for value in held if isinstance(value, Tensor)), None)
        if layer is not None and given is not None:
            return given.dim() == len(layer.kernel_size) + 1
        frame = frame.tb_next
    return any(re.search(pattern, str(error)) for axes in range(1, 5) for pattern in _too_few(axes))


def _too_few(axes: int) -> tuple[str, ...]:
    """Return what torch and Python say where a tensor has `axes` axes, and should have one more."""
    return (
        rf"to unpack \(expected {axes + 1}, got {axes}\)",
        rf"expected {axes + 1}D input \(got {axes}D input\)",
        rf"range of \[-{axes}, {axes - 1}\], but got {axes}\)",
    )


def integers_remedy(model: nn.Module, inputs: Any, error: Exception) -> str:
    """Return the remedy for integers, such as the bytes of images, where numbers with a point are read."""
    held = next((value.dtype for value in model.parameters() if value.is_floating_point()), None)
    given = next(iter(tensors_in(inputs)), None)
    if held is None or given is None or not re.search(r"scalar type|dtype|should be the same", str(error)):
        return ""
    name, other = (str(dtype).removeprefix("torch.") for dtype in (held, given.dtype))
    return f"The weights are {name}, the inputs {other}: pass x.to(torch.{name}), scaled as in training."


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
