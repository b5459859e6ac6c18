"""Random signs that depend on (seed, draw, position) and nothing else: not on batches, devices or global state.

A counter-based generator (SplitMix64): every 64-bit word is a hash of its own coordinates, and each of its bits is
one sign.
"""

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def signs(seed: int, draw: int | Tensor, stream: Tensor, count: int) -> Tensor:
    """Return Rademacher signs, one row of `count` for each entry of `stream`.

    Args:
        seed: The user's seed.
        draw: Index of the draw or probe; on an accelerator a tensor `()` spares a copy.
        stream: What the signs are for, such as positions of samples in the data, int64 `(n,)`.
        count: Signs in each row.

    Returns:
        `(n, count)` of ±1 in int8, on the device of `stream`.

    Example:
        >>> rows = signs(0, 0, torch.tensor([5, 6]), 3)
        >>> torch.equal(rows[1:], signs(0, 0, torch.tensor([6]), 3))
        True
    """
    words = torch.arange((count + 63) // 64, device=stream.device)
    key = _hash(_hash(_hash(torch.full_like(stream, seed)) + draw) + stream)[:, None]
    octets = _hash(key + words).view(torch.uint8)[..., None]
    bits = (octets >> torch.arange(8, dtype=torch.uint8, device=stream.device)) & 1
    return (bits.flatten(1)[:, :count].to(torch.int8) * 2).sub_(1)


def _hash(x: Tensor) -> Tensor:
    """Scramble 64-bit words."""
    x = x * _GOLDEN + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift right without copying the sign bit."""
    return (x >> by) & ((1 << (64 - by)) - 1)
