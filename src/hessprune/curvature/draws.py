"""Random signs and positions by seed, draw and stream alone: no batch, device or global state changes them.

A counter-based generator (SplitMix64): every 64-bit word is a hash of its own coordinates, and each of its bits is
one sign.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def signs(seed: int, draw: int | Tensor, stream: Tensor, count: int) -> Tensor:
    """Return Rademacher signs, one row of `count` for each entry of `stream`.

    Args:
        seed: The user's seed.
        draw: Index of the draw or probe; on an accelerator a tensor `()` spares a copy.
        stream: A number for each row, such as the place of a sample in the data, int64 `(n,)`.
        count: Signs in each row.

    Returns:
        `(n, count)` of ±1 in int8, on the device of `stream`.

    Example:
        >>> import torch
        >>> from hessprune.curvature.draws import signs
        >>> rows = signs(0, 0, torch.tensor([5, 6]), 3)
        >>> torch.equal(rows[1:], signs(0, 0, torch.tensor([6]), 3))
        True
    """
    words = torch.arange((count + 63) // 64, device=stream.device)
    return _signs_of(_hash(_key(seed, draw, stream)[:, None] + words)).flatten(1)[:, :count]


def positions(seed: int, draw: int, stream: Tensor, count: int, *, size: int) -> Tensor:
    """Return `count` random positions of `size` for each entry of `stream`, one in each of `count` equal intervals.

    Every position is drawn equally often in expectation. A position in two intervals may be drawn twice.

    Args:
        seed: The user's seed.
        draw: Index of the draw, such as a number for the layer.
        stream: A number for each row, such as the place of a sample in the data, int64 `(n,)`.
        count: Positions in each row.
        size: Number of positions there are, at least `count`.

    Returns:
        `(n, count)` in int64, rising, on the device of `stream`.

    Example:
        >>> import torch
        >>> from hessprune.curvature.draws import positions
        >>> positions(0, 0, torch.tensor([5]), 4, size=4)
        tensor([[0, 1, 2, 3]])
    """
    intervals = torch.arange(count, device=stream.device)
    words = _hash(_key(seed, draw, stream)[:, None] + intervals)
    within = _shift(words, 11).double() * 2.0**-53  # in [0, 1)
    return ((intervals + within) * (size / count)).long().clamp(max=size - 1)


class Rows:
    """Rows of signs of different lengths, drawn by as many kernels as a single row.

    Args:
        streams: A number for each row, int64 `(n,)`.
        counts: Signs in each row.

    Example:
        >>> import torch
        >>> from hessprune.curvature.draws import Rows, signs
        >>> first, second = Rows(torch.tensor([5, 6]), [3, 70]).draw(seed=0, draw=1)
        >>> torch.equal(second, signs(0, 1, torch.tensor([6]), 70)[0])
        True
    """

    def __init__(self, streams: Tensor, counts: Sequence[int]) -> None:
        sizes = [(count + 63) // 64 for count in counts]
        self._counts, self._sizes = list(counts), [64 * size for size in sizes]
        self._streams = streams.repeat_interleave(torch.tensor(sizes, device=streams.device))
        self._words = torch.cat([torch.arange(size, device=streams.device) for size in sizes])

    def draw(self, *, seed: int, draw: int | Tensor) -> list[Tensor]:
        """Return the same rows as `signs` for `(seed, draw, stream)`, each `(count,)` of ±1 in int8."""
        rows = _signs_of(_hash(_key(seed, draw, self._streams) + self._words)).flatten().split(self._sizes)
        return [row[:count] for row, count in zip(rows, self._counts, strict=True)]


def _key(seed: int, draw: int | Tensor, stream: Tensor) -> Tensor:
    return _hash(_hash(_hash(torch.full_like(stream, seed)) + draw) + stream)


def _signs_of(words: Tensor) -> Tensor:
    """Return the bits of 64-bit words `(*, n)` as ±1, `(*, 8 n, 8)` in int8."""
    octets = words.view(torch.uint8)[..., None]
    bits = (octets >> torch.arange(8, dtype=torch.uint8, device=words.device)) & 1
    return (bits.to(torch.int8) * 2).sub_(1)


def _hash(x: Tensor) -> Tensor:
    """Scramble 64-bit words."""
    x = x * _GOLDEN + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift right without copying the sign bit."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def sampled(seed: int, draw: int, stream: Tensor, rows: Sequence[Tensor], most: int) -> Tensor:
    """Return at most so many rows of each sample, in one tensor: all of them, or those of `positions` by rank.

    Args:
        seed: The user's seed.
        draw: Index of the draw, such as a number for the layer.
        stream: A number for each sample, such as its place in the data, int64 `(n,)`.
        rows: Numbers of rows, `n` tensors, such as those of the words of a padded text.
        most: Rows of a sample.

    Example:
        >>> import torch
        >>> sampled(0, 0, torch.arange(2), [torch.arange(3), torch.arange(10, 20)], 4)[:3]
        tensor([0, 1, 2])
    """
    chosen = list(rows)
    for size in sorted({len(own) for own in rows if len(own) > most}):
        alike = [number for number, own in enumerate(rows) if len(own) == size]
        for number, drawn in zip(alike, positions(seed, draw, stream[alike], most, size=size), strict=True):
            chosen[number] = rows[number][drawn]
    return torch.cat(chosen)
