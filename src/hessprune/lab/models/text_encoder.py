"""A small encoder of sentences: tokens with positions, blocks of attention and neurons, their mean is classified."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.lab.models.attention import Block


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
        self.blocks = nn.ModuleList(Block(width, 4 * width, F.relu) for _ in range(depth))
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
