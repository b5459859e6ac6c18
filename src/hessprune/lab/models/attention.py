"""The block that our small transformers are stacked from."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 16
"""Width of one head."""


class Attention(nn.Module):
    """Self-attention over all positions, or over those that a mask lets count."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # (N, T, width), (N, 1, 1, T) → (N, T, width)
        """Mix the positions."""
        q, k, v = (layer(x).unflatten(2, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.project(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a pair of linear layers, each behind a layer norm and beside a residual connection.

    Args:
        width: Numbers of each position, a multiple of 16; heads have 16 each.
        neurons: Numbers between the two linear layers.
        activation: The function between them.
    """

    def __init__(self, width: int, neurons: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, neurons), nn.Linear(neurons, width)
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the block."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(self.activation(self.up(self.norm2(x))))
