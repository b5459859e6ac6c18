"""Which numbers of a model a pruned one kept, found by their values, and the dense model with zeros for the rest.

Any tool's result can be judged so, since nothing but the two models is read. `mark` gives numbers to tell apart.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SAMPLES = 33  # values that vote on the place that a row came from


class UnknownNumbersError(Exception):
    """The pruned model holds numbers, or tensors, that the dense one does not."""


def mark(model: nn.Module) -> None:
    """Make the numbers of every vector, and of every tensor of equal numbers, differ from each other, in place."""
    statistics = {name for name, _ in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or (name not in statistics and not isinstance(tensor, nn.Parameter)):
                continue
            if tensor.numel() > 1 and (tensor.dim() < 2 or _is_dull(tensor)):
                steps = torch.linspace(-0.2, 0.2, tensor.numel())[torch.randperm(tensor.numel())]
                tensor.add_(steps.view(tensor.shape))


def _is_dull(tensor: Tensor) -> bool:
    some = tensor.flatten()[:1000]
    return 2 * len(some.unique()) < len(some)


def masked(dense: nn.Module, pruned: nn.Module) -> nn.Module:
    """Return the dense model with zeros in the place of all numbers that the pruned one does not hold."""
    copied, found = copy.deepcopy(dense), dict(pruned.named_parameters())
    groups = {f"{name}.weight": getattr(module, "groups", 1) for name, module in pruned.named_modules()}
    for name, parameter in copied.named_parameters():
        if name not in found:
            raise UnknownNumbersError(f"no parameter {name} is left")
        if found[name].shape != parameter.shape:
            mask = kept(parameter.detach(), found[name].detach(), groups.get(name) or 1)
            parameter.data.mul_(mask)
            parameter.kept = mask  # type: ignore[attr-defined]
    return copied


def kept(dense: Tensor, pruned: Tensor, groups: int = 1) -> Tensor:
    """Return which entries of `dense` stand in `pruned`, as a mask of 0 and 1.

    The entries are rows times columns times …; the columns (axis 1) of each of `groups` blocks of rows may differ.
    """
    mask = torch.zeros_like(dense)
    rows = len(pruned) // groups
    origins = (
        _one_axis if sum(a != b for a, b in zip(dense.shape, pruned.shape, strict=True)) == 1 else _any_axis(dense)
    )
    first = origins(dense, pruned, 0)
    for block in range(groups):
        part = pruned[block * rows : (block + 1) * rows]
        index = [first[block * rows : (block + 1) * rows]]
        if groups > 1 and dense.shape[1] != pruned.shape[1]:
            origins = _any_axis(dense)  # a block of rows is no longer all of them
        index += [origins(dense, part, dim) for dim in range(1, dense.dim())]
        mask[torch.meshgrid(*index, indexing="ij")] = 1
    return mask


def _one_axis(dense: Tensor, pruned: Tensor, dim: int) -> Tensor:
    """Return the position in `dense` of each position of `pruned` along the only axis that shrank."""
    if dense.shape[dim] == pruned.shape[dim]:
        return torch.arange(dense.shape[dim])
    before, after = (
        tensor.movedim(dim, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in (dense, pruned)
    )
    places = [_places(*before[:, column].sort(), after[:, column]) for column in range(min(3, before.shape[1]))]
    return torch.stack(places).mode(0).values


def _any_axis(dense: Tensor) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the same for axes that shrank together: some values of each line are looked for everywhere, and vote."""
    values, order = dense.flatten().sort()

    def origins(dense: Tensor, pruned: Tensor, dim: int) -> Tensor:
        if dense.shape[dim] == pruned.shape[dim]:
            return torch.arange(dense.shape[dim])
        lines = pruned.movedim(dim, 0).reshape(pruned.shape[dim], -1)
        lines = lines[:, :: math.ceil(lines.shape[1] / SAMPLES)]
        place = _places(values, order, lines.contiguous())
        return (place // math.prod(dense.shape[dim + 1 :]) % dense.shape[dim]).mode(1).values

    return origins


def _places(values: Tensor, order: Tensor, wanted: Tensor) -> Tensor:
    place = torch.searchsorted(values, wanted.contiguous()).clamp(max=len(values) - 1)
    if not bool((values[place] == wanted).all()):
        raise UnknownNumbersError("a kept weight has another value than before")
    return order[place]


def difference(dense: nn.Module, pruned: nn.Module, example: Any) -> float:
    """Return the largest difference of outputs between the masked and the pruned model, as a share of the largest.

    Looks in float32 first, and again in float64 where that leaves a doubt. A layer norm of kept channels counts as it
    is meant: mean and variance of those.
    """
    expected = masked(dense, pruned)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 0.0)):
        pairs = zip(_outputs(expected, example, dtype), _outputs(pruned, example, dtype), strict=True)
        worst = max(map(_apart, *zip(*pairs, strict=True)), default=math.inf)
        if worst <= tolerance:
            break
    return worst


def _apart(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or not bool(a.isfinite().all()):
        return math.inf
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) if a.numel() else 0.0


def _outputs(model: nn.Module, example: Any, dtype: torch.dtype) -> list[Tensor]:
    moved = _cast(example, dtype)
    with torch.no_grad(), _KeptStatistics(), _kept_root_mean_squares(model):
        found = model.to(dtype)(**moved) if isinstance(moved, dict) else model.to(dtype)(moved)
    return [tensor.detach() for tensor in _tensors(found)]


def _cast(example: Any, dtype: torch.dtype) -> Any:
    if isinstance(example, dict):
        return {name: _cast(value, dtype) for name, value in example.items()}
    return example.to(dtype) if example.is_floating_point() else example


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)


class _KeptStatistics(TorchFunctionMode):
    """Takes the statistics of a layer norm over the entries that its weight kept."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            named = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
            mask = getattr(named.get("weight"), "kept", None)
            if mask is not None:
                return _normalised(named, mask.to(named["input"].dtype))
        return func(*args, **kwargs)


def _normalised(named: dict[str, Any], mask: Tensor) -> Tensor:
    x, dims = named["input"], tuple(range(-mask.dim(), 0))
    mean = (x * mask).sum(dims, keepdim=True) / mask.sum()
    variance = ((x - mean).square() * mask).sum(dims, keepdim=True) / mask.sum()
    result = (x - mean) / (variance + named.get("eps", 1e-5)).sqrt() * named["weight"]
    return result if named.get("bias") is None else result + named["bias"]


class _kept_root_mean_squares:  # noqa: N801 - used as a function
    """Makes modules named RMSNorm take the mean over the entries that their weight kept."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [
            module
            for module in model.modules()
            if type(module).__name__.endswith("RMSNorm") and hasattr(getattr(module, "weight", None), "kept")
        ]

    def __enter__(self) -> None:
        for module in self._modules:
            module.forward = _root_mean_square(module)

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            del module.forward


def _root_mean_square(module: nn.Module) -> Any:
    def forward(x: Tensor) -> Tensor:
        mask = module.weight.kept.to(x.dtype)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))
        return x * ((x.square() * mask).sum(-1, keepdim=True) / mask.sum() + eps).rsqrt() * module.weight

    return forward
