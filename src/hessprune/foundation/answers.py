"""A few numbers that tell whether two models compute the same, whatever their code: what they answer to samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hessprune.foundation.modules import device_of, forward
from hessprune.foundation.state import evaluation_mode, seeded
from hessprune.foundation.trees import leading_size, sample_rows, tensors_in, to_device

SAMPLES, PLACES, SUMS = 4, 1 << 16, 8
"""Samples that are asked, places of an output that count at most, and numbers that are kept of it."""
FAR = 100.0
"""Sizes beyond this multiple of the median are cut: a mask of −1e9 would hide everything else."""
LEAST = 1e-8
"""Differences that are rounding noise whatever the size of the numbers, such as in the loss of a model on its own
outputs."""


@torch.no_grad()
def answers(model: nn.Module, inputs: Any) -> tuple[float, ...]:
    """Return sums of a model's outputs with random signs, for a few samples, `SUMS` for each output tensor.

    The squares of differences between two models' sums estimate the squared distance of their outputs. Takes a forward
    of at most four samples.

    Args:
        model: Runs in evaluation mode; left untouched.
        inputs: Of one batch.

    Raises:
        DataError: The inputs do not fit the model.

    Example:
        >>> import torch
        >>> from hessprune.foundation.answers import agree, answers
        >>> x = torch.randn(8, 3)
        >>> one, two = (answers(layer, x) for layer in (torch.nn.ReLU(), torch.nn.GELU()))
        >>> agree(one, one), agree(one, two)
        (True, False)
    """
    count = leading_size(inputs)
    rows = torch.linspace(0, count - 1, min(SAMPLES, count), device="cpu").long()
    with seeded(0), evaluation_mode(model):
        output = forward(model, to_device(sample_rows(inputs, rows), device_of(model)))
    return tuple(number for tensor in tensors_in(output) for number in _sums(tensor))


def agree(one: Sequence[float], other: Sequence[float], tolerance: float = 1e-3) -> bool:
    """Return whether numbers are as close as rounding on two machines leaves them.

    Args:
        one: From `answers`.
        other: Of another model, or on another machine.
        tolerance: Length of the difference in lengths of `one`.
    """
    if len(one) != len(other):
        return False
    a, b = (torch.tensor(numbers, dtype=torch.float64, device="cpu") for numbers in (one, other))
    return float((a - b).norm()) <= LEAST + tolerance * float(torch.maximum(a.norm(), b.norm()))


def tolerance_of(model: nn.Module) -> float:
    """Return how far numbers of one model may be apart: more for weights of 16 bits."""
    sizes = [value.itemsize for value in model.parameters() if value.is_floating_point()]
    return 1e-3 if min(sizes, default=4) >= 4 else 5e-2


def _sums(tensor: Tensor) -> list[float]:
    """Return sums over places of a tensor with random signs, drawn alike each time."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = values.detach().reshape(-1)
    draws = torch.Generator().manual_seed(0)
    if len(values) > PLACES:
        values = values[torch.randint(len(values), (PLACES,), generator=draws, device="cpu").to(values.device)]
    values = values.double().cpu().nan_to_num(0.0, 0.0, 0.0)
    sizes = values.abs()[values != 0]
    if len(sizes):
        values = values.clamp(-FAR * float(sizes.median()), FAR * float(sizes.median()))
    signs = torch.randint(2, (SUMS, len(values)), generator=draws, device="cpu").double() * 2 - 1
    return (signs @ values).tolist()
