"""One use of a weight as a regression: rows of inputs times a matrix give rows of outputs."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hessprune.operators.maps import Convolution, LinearMap


def rows_of(call: LinearMap, out: Tensor) -> Tensor:
    """Return outputs as rows `(samples × positions, O)`."""
    return out.movedim(1, -1).flatten(0, -2) if isinstance(call, Convolution) else out.flatten(0, -2)


def outputs_by_sample(call: LinearMap, out: Tensor, samples: int) -> Tensor:
    """Return outputs as `(N, T, O)`, for the `T` positions of every sample."""
    if isinstance(call, Convolution):  # a sample may consist of several frames
        return rows_of(call, out).view(samples, -1, out.shape[1])
    return call.layout.by_sample(out, samples)


def rows_by_sample(call: LinearMap, out: Tensor, samples: int) -> Tensor:
    """Return the row numbers, in the order of `rows_of`, of each sample's positions, `(N, T)`."""
    axis = 1 if isinstance(call, Convolution) else -1
    numbers = torch.arange(out.numel() // out.shape[axis], device=out.device)
    if isinstance(call, Convolution):
        return numbers.view(samples, -1)
    return call.layout.by_sample(numbers.view(*out.shape[:-1], 1), samples).squeeze(-1)


def samples_of_rows(call: LinearMap, out: Tensor, samples: int) -> Tensor:
    """Return the sample of each row, in the order of `rows_of`; of rows that are not shared out evenly, about that."""
    rows = torch.arange(out.numel() // out.shape[1 if isinstance(call, Convolution) else -1], device=out.device)
    if len(rows) % samples:
        return rows * samples // len(rows)
    numbers = rows_by_sample(call, out, samples)
    rows[numbers] = torch.arange(samples, device=out.device)[:, None].expand_as(numbers)
    return rows


def word_rows(call: LinearMap, out: Tensor, masks: Mapping[int, Tensor]) -> Tensor | None:
    """Return which rows of outputs, in the order of `rows_of`, belong to words and not to padding; None if all do.

    Args:
        call: A linear layer that has `T` rows for each sample; all rows of others count.
        out: Its outputs.
        masks: Which positions `(N, T)` are words, by `T`.
    """
    for mask in masks.values() if not isinstance(call, Convolution) else ():
        if out.numel() == mask.numel() * out.shape[-1] and not bool(mask.all()):
            words = torch.zeros(mask.numel(), dtype=torch.bool, device=out.device)
            words[rows_by_sample(call, out, len(mask))] = mask.to(out.device)
            return words
    return None


def columns_of(call: LinearMap, weight: Tensor) -> Tensor:
    """Return a weight as the matrix of a regression, `(g, K, O)`."""
    if isinstance(call, Convolution):
        return weight.flatten(1).unflatten(0, (call.groups, -1)).mT
    return weight[None] if call.transposed else weight.flatten(1).mT[None]


def weight_from(call: LinearMap, columns: Tensor, weight: Tensor) -> Tensor:
    """Return the matrix `(g, K, O)` of a regression as a weight."""
    if isinstance(call, Convolution):
        return columns.mT.reshape(weight.shape).to(weight.dtype)
    return (columns[0] if call.transposed else columns[0].mT).reshape(weight.shape).to(weight.dtype)


def design(call: LinearMap, x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """Return inputs of the regression at some rows, `(R, g, K)`."""
    if not isinstance(call, Convolution):
        return x.flatten(0, -2)[positions][:, None]
    kernel = weight.shape[2:]
    padded = F.pad(x, [side for amount in reversed(call.padding) for side in (amount, amount)]).movedim(1, -1)
    spans = zip(padded.shape[1:-1], kernel, call.stride, call.dilation, strict=True)
    sample, *place = torch.unravel_index(
        positions, (x.shape[0], *((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in spans))
    )
    offsets = torch.cartesian_prod(*(torch.arange(k, device="cpu") for k in kernel)).view(-1, len(kernel)).tolist()
    patches = [
        padded[(sample, *(p * s + o * d for p, o, s, d in zip(place, offset, call.stride, call.dilation, strict=True)))]
        for offset in offsets
    ]  # one (R, I) for each position of the kernel
    return torch.stack(patches, -1).view(len(positions), call.groups, -1)
