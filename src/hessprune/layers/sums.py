"""Sums over the rows of a regression, which are sufficient for least squares."""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, BLOCK = 1024, 256
"""Rows and columns of one block of a product; with these a product of 576 columns takes half the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """Sums over rows `x (R, *, K)` and `y (R, *, O)` of regressions `y ≈ x W`, in float64.

    `*` is the number of groups of a layer, one regression each, or absent.
    """

    count: int
    x: Tensor  # (*, K)
    y: Tensor  # (*, O)
    xx: Tensor  # (*, K, K)
    xy: Tensor  # (*, K, O)
    yy: Tensor  # (*, O)

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Sums":
        """Sum over rows, in portions that stay in the processor's cache.

        Only one half of the symmetric `XᵀX` is computed, block by block: R K² / 2 multiplications. Products of a
        portion are taken about means, in the precision of the rows, and added up in float64.
        """
        size = x.shape[-1]
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        origins = [rows[:ROWS].to(dtype).sum(0) / max(1, len(rows[:ROWS])) for rows in (x, y)]
        sum_x, sum_y, squares = (x.new_zeros(like.shape[1:], dtype=torch.float64) for like in (x, y, y))
        xx, xy = (sum_x.new_zeros(*x.shape[1:], width) for width in (size, y.shape[-1]))
        for few in zip(x.split(ROWS), y.split(ROWS), strict=True):
            inputs, outputs = ((rows.to(dtype) - mean).movedim(0, -2) for rows, mean in zip(few, origins, strict=True))
            for start in range(0, size, BLOCK):
                xx[..., start : start + BLOCK, start:] += inputs[..., start : start + BLOCK].mT @ inputs[..., start:]
            xy += inputs.mT @ outputs
            sum_x += inputs.double().sum(-2)
            sum_y += outputs.double().sum(-2)
            squares += outputs.double().square().sum(-2)
        centred = cls(count=len(x), x=sum_x, y=sum_y, xx=_mirrored(xx), xy=xy, yy=squares)
        return centred.about(*(-mean.double() for mean in origins))

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over both sets of rows."""
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})

    def select(self, inputs: Tensor, outputs: Tensor) -> "Sums":
        """Return the sums of some columns of `x` and of `y`."""
        xx = self.xx[..., inputs, :][..., inputs]
        xy, yy = self.xy[..., inputs, :][..., outputs], self.yy[..., outputs]
        return Sums(count=self.count, x=self.x[..., inputs], y=self.y[..., outputs], xx=xx, xy=xy, yy=yy)

    def about(self, x: Tensor, y: Tensor) -> "Sums":
        """Return the sums of `x − x̄` and `y − ȳ`, for `x̄ (*, K)` and `ȳ (*, O)`."""
        left_x, left_y = self.x - self.count * x, self.y - self.count * y
        return Sums(
            count=self.count,
            x=left_x,
            y=left_y,
            xx=self.xx - _outer(self.x, x) - _outer(x, left_x),
            xy=self.xy - _outer(self.x, y) - _outer(x, left_y),
            yy=self.yy - y * (self.y + left_y),
        )

    def centred(self) -> "Sums":
        """Return the sums about the means."""
        return self.about(self.x / self.count, self.y / self.count)

    def error(self, weight: Tensor) -> Tensor:
        """Return the squared error of each output, `Σ (y − x W)²`, `(*, O)`."""
        return self.yy - 2 * (weight * self.xy).sum(-2) + (weight * (self.xx @ weight)).sum(-2)


def _mirrored(upper: Tensor) -> Tensor:
    """Fill the lower half of matrices from the upper one, in place."""
    for start in range(0, upper.shape[-1], BLOCK):
        end = start + BLOCK
        block = upper[..., start:end, start:end]
        block.copy_(block.triu() + block.triu(1).mT)
        upper[..., end:, start:end] = upper[..., start:end, end:].mT
    return upper


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]
