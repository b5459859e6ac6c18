"""A small encoder of sentences: tokens with positions, blocks of attention and neurons, their mean is classified."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 16
"""Width of one head."""


class Attention(nn.Module):
    """Self-attention over the tokens that are no padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (N, T, width), (N, 1, 1, T) → (N, T, width)
        """Mix the tokens."""
        q, k, v = (layer(x).unflatten(2, (-1, HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.project(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a pair of linear layers, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, neurons), nn.Linear(neurons, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Run the block."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.down(F.relu(self.up(self.norm2(x))))


class TextEncoder(nn.Module):
    """Tokens and positions, `depth` blocks, the mean over the tokens.

    Args:
        num_classes: Outputs.
        vocabulary: Tokens.
        depth: Blocks.
        width: Numbers of each token, a multiple of 16; heads have 16 each.
        most: Tokens of the longest sentence.
    """

    def __init__(
        self, num_classes: int, vocabulary: int = 128, *, depth: int = 3, width: int = 96, most: int = 64
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(most, width)
        self.blocks = nn.ModuleList(Block(width, 4 * width) for _ in range(depth))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # (N, T), (N, T) → (N, num_classes)
        """Return the logits."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(places)
        mask = attention_mask[:, None, None, :] > 0
        for block in self.blocks:
            x = block(x, mask)
        weight = attention_mask[..., None].to(x.dtype)
        return self.classifier((self.norm(x) * weight).sum(1) / weight.sum(1))
