"""Modules by name: call them on any kind of inputs, cut their tensors, keep their attributes true."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune._state import drop_caches, evaluation_mode
from hessprune.errors import DataError, HessPruneError

T = TypeVar("T")

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
        reason, module = str(error).strip().partition("\n")[0].rstrip("."), failing_module(model, error)
        where = f", in module '{module}'" if module else ""
        raise DataError(
            f"inputs in `{name}` must fit the model, got {describe(inputs)}{where}: {reason}. "
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


def to_device(tree: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Any:
    """Move a nested tuple or dict of tensors; `dtype` applies to floating-point tensors only."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype if dtype and tree.is_floating_point() else None)
    if isinstance(tree, Mapping):
        return {key: to_device(value, device, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(to_device(value, device, dtype) for value in tree)
    return tree


def sample_rows(tree: Any, rows: Tensor) -> Any:
    """Return the samples `rows` of a nested tuple or dict of tensors, batch first."""
    if isinstance(tree, Tensor):
        return tree[rows.to(tree.device)]
    if isinstance(tree, Mapping):
        return {key: sample_rows(value, rows) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(sample_rows(value, rows) for value in tree)
    return tree


def join_inputs(parts: Sequence[Any]) -> Any:
    """Concatenate batches of nested tuples or dicts of tensors along the samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: join_inputs([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(join_inputs(items) for items in zip(*parts, strict=True))
    return first


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
        try:
            return run(empty_copy(model), to_device(inputs, "meta"))
        except (RuntimeError, NotImplementedError):  # what the meta device answers to questions about values
            return run(copy.deepcopy(model), inputs)


def shared_copy(model: nn.Module) -> nn.Module:
    """Copy the modules of a model, but not its tensors: what a forward leaves in the copy does not reach the model."""
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in _tensors(model)}
    return copy.deepcopy(model, memo)


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


Cut = Any  # a Slice or Literal of hessprune.structure, which this level does not know by name


def remove_slices(model: nn.Module, cuts: Sequence[tuple[Cut, Sequence[int]]]) -> None:
    """Delete units from a model in place: `cuts` pairs each slice (or literal) with the units to remove.

    All positions refer to the model as it is on entry. Parameters keep their identity across aliases, their dtype and
    their `requires_grad`; the attributes of the owning modules follow.
    """
    doomed: dict[tuple[str, int], list[int]] = {}
    for cut, units in cuts:
        if hasattr(cut, "attribute"):
            module = model.get_submodule(cut.module)
            setattr(module, cut.attribute, getattr(module, cut.attribute) - sum(cut.counts[unit] for unit in units))
        else:
            doomed.setdefault((cut.param, cut.dim), []).extend(p for unit in units for p in cut.index[unit])
    keep: dict[str, dict[int, Tensor]] = {}
    state = dict(_tensors(model))
    for (name, dim), positions in doomed.items():
        mask = torch.ones(state[name].shape[dim], dtype=torch.bool)
        mask[positions] = False
        keep.setdefault(name, {})[dim] = mask.nonzero().squeeze(1)
    replace_tensors(model, {name: _select(state[name], dims) for name, dims in keep.items()})
    drop_caches(model)


def replace_tensors(model: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Put new tensors in the place of parameters and buffers, under every alias, and update module attributes."""
    state = dict(_tensors(model))
    by_identity = {id(state[name]): value for name, value in new.items()}
    for module in model.modules():
        changed = False
        for table in (module._parameters, module._buffers):
            for attribute, old in table.items():
                if old is not None and id(old) in by_identity:
                    table[attribute] = _like(old, by_identity[id(old)])  # type: ignore[assignment]
                    by_identity[id(old)] = table[attribute]  # type: ignore[assignment]
                    changed = True
        if changed:
            sync_attributes(module)


def sync_attributes(module: nn.Module) -> None:
    """Make the size attributes of torch's own layers agree with their tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        rows, columns = module.weight.shape[:2]
        inside, outside = (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
        module.in_channels, module.out_channels = inside, outside
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else module.running_mean
        module.num_features = module.num_features if held is None else len(held)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    for dim, index in dims.items():
        tensor = tensor.detach().index_select(dim, index.to(tensor.device))
    return tensor.contiguous()


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(new, nn.Parameter) or not isinstance(old, nn.Parameter):
        return new
    return nn.Parameter(new, requires_grad=old.requires_grad)
