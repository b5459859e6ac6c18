"""Sizes of inputs that a captured graph computes right.

A graph holds the example's sizes wherever a forward reads them. Whether it does shows on other sizes, each of which
both the model and its graph must refuse, or agree on.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.deploy.axes import Axes, positional
from hessprune.errors import DataError
from hessprune.foundation.modules import call_model, device_of
from hessprune.foundation.state import seeded
from hessprune.foundation.trees import describe, rebuilt, tensors_in, to_device

Sizes = tuple[int | None, ...]
"""The axes of a tensor; None for any size."""


def accepted_sizes(model: nn.Module, graph: nn.Module, example: Any, axes: Axes) -> dict[int | str, list[Sizes]]:
    """Return the sizes of the tensors of each argument, by position or name.

    Axes of one size, such as height and width, change together.

    Args:
        model: The model that was captured.
        graph: What it was captured as.
        example: The inputs of the capture.
        axes: The axes that the capture left free.
    """
    if device_of(model).type != "cpu":  # an index out of range is an error there, and the end of the process elsewhere
        model, graph, example = copy.deepcopy(model).cpu(), copy.deepcopy(graph).cpu(), to_device(example, "cpu")
    example, free = _varied(example), axes.free(example)
    tried = {size for tensor, held in zip(tensors_in(example), free, strict=True) for size in _fixed(tensor, held)}
    any_size = {size for size in tried if _is_free(size, partial(_agree, model, graph), example, free)}
    marks = iter(free)

    def sizes(tensor: Tensor) -> Sizes:
        held = next(marks)
        return tuple(None if axis in held or n in any_size else n for axis, n in enumerate(tensor.shape))

    arguments = example.items() if isinstance(example, Mapping) else enumerate(positional(example))
    return {key: [sizes(tensor) for tensor in tensors_in(value)] for key, value in arguments}


def check_sizes(accepted: Mapping[int | str, Sequence[Sizes]], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if inputs have sizes that the graph would compute wrongly.

    Raises:
        DataError: They have; the message holds both.
    """
    for key, value in (*enumerate(args), *kwargs.items()):
        for tensor, sizes in zip(tensors_in(value), accepted.get(key, ()), strict=False):
            if len(sizes) == tensor.dim() and any(n not in (None, m) for n, m in zip(sizes, tensor.shape, strict=True)):
                wanted = ", ".join("any" if size is None else str(size) for size in sizes)
                raise DataError(
                    f"inputs must have the sizes that the model was captured for, got {describe(tensor)} for "
                    f"({wanted}). Resize them, or pass an example of that size to hp.prepare_qat."
                )


def _varied(example: Any) -> Any:
    """Return inputs with random numbers for a tensor of one number, of which a wrong size may give right results."""
    with seeded(0):
        return rebuilt(example, lambda x: torch.rand_like(x) if x.is_floating_point() and len(x.unique()) == 1 else x)


def _fixed(tensor: Tensor, free: set[int]) -> list[int]:
    return [size for axis, size in enumerate(tensor.shape) if axis not in free and size > 1]


def _is_free(size: int, agree: Callable[[Any], bool | None], example: Any, free: list[set[int]]) -> bool:
    """Return whether axes of a size may have another one."""
    found = [agree(_smaller(example, free, size, other)) for other in {size // 2, size - 1}]
    return True in found and False not in found


def _smaller(example: Any, free: list[set[int]], size: int, other: int) -> Any:
    """Shorten all fixed axes of one size to another."""
    marks = iter(free)

    def cut(tensor: Tensor) -> Tensor:
        held = next(marks)
        for axis in range(tensor.dim()):
            if axis not in held and tensor.shape[axis] == size:
                tensor = tensor.narrow(axis, 0, other)
        return tensor

    return rebuilt(example, cut)


def _agree(model: nn.Module, graph: nn.Module, inputs: Any) -> bool | None:
    """Return whether a model and its graph compute the same; None if both refuse."""
    expected, found = _outputs(model, inputs), _outputs(graph, inputs)
    if expected is None or found is None:
        return None if expected is found else False
    return len(expected) == len(found) and all(map(_is_close, expected, found))


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor] | None:
    try:
        with seeded(0):
            return list(tensors_in(call_model(model, inputs)))
    except Exception:  # a model may refuse a size with an error of any class
        return None


def _is_close(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    bound = 1e-3 * float(expected.double().abs().max()) if expected.numel() else 0.0
    return torch.allclose(found.double(), expected.double(), rtol=0, atol=bound, equal_nan=True)
