"""Modules by name: call them on any kind of inputs, cut their tensors, keep their attributes true."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import DataError, HessPruneError


# What a forward pass may raise through no fault of its inputs.
_OTHER_CAUSES = (HessPruneError, torch.OutOfMemoryError, torch.AcceleratorError)


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call `model` on a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> Tensor:
    """Return the logits of a model's output: the tensor itself, `.logits`, `["logits"]`, or the first element."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else next(iter(output.values()))
    return output.logits if hasattr(output, "logits") else output[0]


def predict(model: nn.Module, inputs: Any, name: str = "batches") -> Tensor:
    """Return the logits of `model` on `inputs`; inputs that do not fit are named instead of torch's traceback.

    Raises:
        DataError: The forward pass fails; the message holds the shapes, the module and torch's own reason.
    """
    try:
        return logits_of(call_model(model, inputs))
    except _OTHER_CAUSES:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"inputs in `{name}` must fit the model, got {describe(inputs)}{_where(model, error)}: {reason}. "
            "Check size, channels and dtype of the inputs."
        ) from error


def describe(tree: Any) -> str:
    """Return dtype and shape of every tensor, short enough for a message.

    Example:
        >>> describe((torch.zeros(2, 3), {"mask": torch.ones(2)}))
        "(float32 (2, 3), {'mask': float32 (2,)})"
    """
    if isinstance(tree, Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')} {tuple(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "(" + ", ".join(describe(value) for value in tree) + ")"
    return type(tree).__name__


def _where(model: nn.Module, error: Exception) -> str:
    """Name the innermost module of `model` on the way to `error`."""
    names = {module: name for name, module in model.named_modules() if name}
    innermost, frame = "", error.__traceback__
    while frame is not None:
        # Only the module itself: hashing an arbitrary `self` could call the user's code.
        owner = frame.tb_frame.f_locals.get("self")
        innermost = names.get(owner, innermost) if isinstance(owner, nn.Module) else innermost
        frame = frame.tb_next
    return f", in module '{innermost}'" if innermost else ""


def to_device(tree: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a nested tuple or dict of tensors; `dtype` applies to floating-point tensors only."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype if dtype and tree.is_floating_point() else None)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to_device(value, device, dtype) for value in tree)
    return tree


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer (CPU if it has none)."""
    first = next(iter(model.parameters()), None)
    if first is None:
        first = next(iter(model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def split_name(name: str) -> tuple[str, str]:
    """Split `"layer1.0.conv.weight"` into module and attribute: `("layer1.0.conv", "weight")`."""
    module, _, attribute = name.rpartition(".")
    return module, attribute


class ChannelPad(nn.Module):
    """Zero-pad channels: `(N, C, *) → (N, before + C + after, *)`, and let pruning adjust both amounts.

    A bare `F.pad` holds its amounts in source code, where no surgery can reach them.

    Args:
        before: Channels of zeros in front.
        after: Channels of zeros behind.

    Example:
        >>> ChannelPad(1, 2)(torch.ones(1, 1, 2, 2)).shape
        torch.Size([1, 4, 2, 2])
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:  # (N, C, *)
        """Pad axis 1 with zeros."""
        return F.pad(x, (0, 0) * (x.dim() - 2) + (self.before, self.after))

    def extra_repr(self) -> str:
        """Show both amounts in the printed model."""
        return f"before={self.before}, after={self.after}"
