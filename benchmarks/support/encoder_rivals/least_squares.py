"""Least squares of a reader's weights, from sums over rows in double precision."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from support.encoder_rivals.setting import Kept, Sublayer
from support.encoder_rivals.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over rows `x` with a one behind, and targets `y`: `[x 1]ᵀ[x 1]` and `[x 1]ᵀ y`."""

    xx: Tensor  # (K + 1, K + 1)
    xy: Tensor  # (K + 1, O)
    rows: int


def moments(pairs: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """Add up rows of inputs and targets."""
    xx, xy, rows = 0.0, 0.0, 0
    for x, y in pairs:
        x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        xx, xy, rows = xx + (x.T @ x).double(), xy + (x.T @ y).double(), rows + len(x)
    assert isinstance(xx, Tensor)
    assert isinstance(xy, Tensor)
    return Moments(xx=xx, xy=xy, rows=rows)


def spread(stream: Stream, sublayer: Sublayer, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
    """Return mean `(K,)` and covariance `(K, K)` of a reader's inputs, of the pruned model if units are gone."""
    size, rows = sublayer.units * sublayer.width, 0
    total, squares = (torch.zeros(shape, dtype=torch.float64) for shape in ((size,), (size, size)))
    for x, _, _ in stream.seen(sublayer, kept):
        total, squares, rows = total + x.double().sum(0), squares + x.T @ x, rows + len(x)
    mean = total / rows
    return mean, squares / rows - mean[:, None] * mean


def fitted(sums: Moments, kept: Tensor, damping: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return weights `(O, K)` and bias `(O,)` of the regression on the kept inputs; zeros at the others."""
    index = torch.cat([kept.nonzero().flatten(), torch.tensor([len(kept)])])
    block = sums.xx[index[:, None], index]
    block.diagonal()[:-1].add_(damping * block.diagonal()[:-1].mean())
    solution = torch.linalg.solve(block, sums.xy[index])
    weight = sums.xy.new_zeros(sums.xy.shape[1], len(kept))
    weight[:, index[:-1]] = solution[:-1].T
    return weight.float(), solution[-1].float()


def to_dense_sum(
    stream: Stream, sublayer: Sublayer, kept: Kept, dense: list[Tensor], damping: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Refit a reader on what is left of its inputs, so that the residual sum behind it is that of the dense model."""
    found = zip(stream.seen(sublayer, kept), dense, strict=True)
    sums = moments((x, goal - residual) for (x, _, residual), goal in found)
    return fitted(sums, sublayer.spread(kept[sublayer.name]), damping)
