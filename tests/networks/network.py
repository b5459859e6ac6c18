"""Random networks: a stem for each input, a few blocks, one head or two."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.mixing import BLOCKS
from tests.networks.parts import conv_norm, even, space
from tests.networks.tokens import TOKEN_BLOCKS

SIZE, TOKENS, BATCH = 4, 5, 2


class Network(nn.Module):
    """Blocks in a row, with joins from earlier blocks of the same width."""

    def __init__(self, rng: random.Random, blocks: int = 3) -> None:
        super().__init__()
        self.kind = rng.choice(("image", "image", "signal", "tokens"))
        self.rank = {"image": 2, "signal": 1, "tokens": 0}[self.kind]
        width = even(rng)
        self.stem = self._stem(rng, width)
        self.second = self._stem(rng, width) if rng.random() < 0.25 else None
        self.join = rng.choice(("sum", "product", "cat"))
        width = 2 * width if self.second is not None and self.join == "cat" else width
        self.blocks, self.tokens, self.skips, widths = nn.ModuleList(), nn.ModuleList(), [], []
        for _ in range(rng.randint(1, blocks)):
            block = rng.choice(BLOCKS if self.rank else TOKEN_BLOCKS)(rng, width, self.rank)
            self.blocks.append(block)
            widths.append(width)
            width = block.out
            can_skip = width in widths and self.rank and rng.random() < 0.3
            self.skips.append(widths.index(width) if can_skip else None)
        if self.rank and rng.random() < 0.15:
            self.tokens.append(rng.choice(TOKEN_BLOCKS)(rng, width, 0))
            width = self.tokens[-1].out
        self.pooling = rng.choice(("mean", "mean", "flatten", "max"))
        flat = SIZE**self.rank if self.pooling == "flatten" and self.rank and not self.tokens else 1
        self.head = nn.Linear(width * flat, 3)
        self.other = nn.Linear(width * flat, 2) if rng.random() < 0.25 else None
        self.late = nn.Linear(width * flat, 2) if rng.random() < 0.2 else None  # for training alone
        self.form = rng.choice(("tuple", "dict"))
        lively(self, rng)

    def _stem(self, rng: random.Random, width: int) -> nn.Module:
        return conv_norm(rng, self.rank, 3, width) if self.rank else nn.Linear(3, width)

    @property
    def drawn(self) -> str:
        """The names of all drawn blocks."""
        return " ".join(
            type(block).__name__ + f"({getattr(block, 'way', '')})" for block in (*self.blocks, *self.tokens)
        )

    def inputs(self) -> tuple[Tensor, ...]:
        """Return an input for each stem."""
        shape = (BATCH, 3, *[SIZE] * self.rank) if self.rank else (BATCH, TOKENS, 3)
        generator = torch.Generator().manual_seed(0)
        count = 1 if self.second is None else 2
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count))

    def forward(self, x: Tensor, y: Tensor | None = None) -> object:
        x = self.stem(x)
        if y is not None:
            y = self.second(y)
            x = (
                x + y
                if self.join == "sum"
                else x * y
                if self.join == "product"
                else torch.cat([y, x], -1 if not self.rank else 1)
            )
        early = []
        for block, start in zip(self.blocks, self.skips, strict=True):
            early.append(x)
            x = block(x) if start is None else block(x) + early[start]
        x = self.pooled(x)
        out = self.head(x)
        if self.training and self.late is not None:
            return out, self.late(x)
        if self.other is None:
            return out
        return (out, self.other(F.relu(x))) if self.form == "tuple" else {"logits": out, "aux": self.other(x)}

    def pooled(self, x: Tensor) -> Tensor:
        if not self.rank or self.tokens:
            x = x.flatten(2).transpose(1, 2) if self.tokens else x
            for block in self.tokens:
                x = block(x)
            return x[:, 0] if self.pooling == "flatten" else x.mean(1)
        if self.pooling == "flatten":
            return x.flatten(1)
        return x.mean(space(x)) if self.pooling == "mean" else x.amax(space(x))


def lively(model: nn.Module, rng: random.Random) -> None:
    """Draw all numbers anew, so that a mistake shows: norms with statistics, biases other than zero."""
    generator = torch.Generator().manual_seed(rng.randrange(1000))
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
