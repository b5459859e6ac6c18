"""Blocks of transformers: `(N, T, width) → (N, T, out)`, with attention in several layouts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.blocks import Block
from tests.networks.parts import Activation, even


class FeedForward(Block):
    def build(self, rng, width, rank):
        self.way, inner = rng.choice(("plain", "glu", "swiglu", "residual")), even(rng)
        self.up, self.gate = nn.Linear(width, 2 * inner if self.way == "glu" else inner), None
        self.gate = nn.Linear(width, inner, bias=False) if self.way == "swiglu" else None
        self.act, self.down = Activation(rng, 1), nn.Linear(inner, width)
        if isinstance(self.act.function, nn.Module):
            self.act = nn.ReLU()
        self.norm = nn.LayerNorm(width) if rng.random() < 0.5 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.way == "glu":
            return x + self.down(F.glu(self.up(y), -1))
        if self.way == "swiglu":
            return x + self.down(F.silu(self.gate(y)) * self.up(y))
        y = self.down(self.act(self.up(y)))
        return y if self.way == "plain" else x + y


class Narrow(Block):
    """A linear layer to another width."""

    def build(self, rng, width, rank):
        self.out = even(rng)
        self.linear, self.act = nn.Linear(width, self.out, bias=rng.random() < 0.5), rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x)) if self.act else self.linear(x)


class Attention(Block):
    """Attention with queries, keys and values fused or apart, heads split in several ways."""

    def build(self, rng, width, rank):
        self.heads, self.size = rng.choice((2, 3, 4)), rng.choice((2, 4))
        self.layout = rng.choice(("fused", "fused heads first", "fused chunk", "separate", "separate", "grouped"))
        self.product, self.norm = rng.choice(("sdpa", "matmul", "einsum")), nn.Identity()
        inner, bias = self.heads * self.size, rng.random() < 0.6
        self.shared_keys = self.layout == "grouped"
        if self.layout.startswith("fused"):
            self.qkv = nn.Linear(width, 3 * inner, bias=bias)
        else:
            keys = self.size if self.shared_keys else inner
            self.q, self.k, self.v = nn.Linear(width, inner, bias), nn.Linear(width, keys), nn.Linear(width, keys)
        self.proj, self.literal = nn.Linear(inner, width), rng.choice(("heads", "size"))
        if rng.random() < 0.4:
            self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.randn(self.heads, 1, 1)) if rng.random() < 0.3 else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.taken_apart(self.norm(x))
        y = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj(y)

    def taken_apart(self, x: Tensor) -> tuple[Tensor, ...]:
        n, t, _ = x.shape
        if self.layout == "fused":
            size = (-1, self.size) if self.literal == "size" else (self.heads, -1)
            return self.qkv(x).reshape(n, t, 3, *size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.layout == "fused heads first":
            return self.qkv(x).view(n, t, -1, 3 * self.size).transpose(1, 2).chunk(3, -1)
        parts = self.qkv(x).chunk(3, -1) if self.layout == "fused chunk" else (self.q(x), self.k(x), self.v(x))
        heads = [self.by_head(part) for part in parts]
        return tuple(heads) if not self.shared_keys else (heads[0], *(part.expand_as(heads[0]) for part in heads[1:]))

    def by_head(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        return x.view(n, t, -1, self.size).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.product == "sdpa":
            mask = None if self.bias is None else self.bias.expand(-1, q.shape[2], k.shape[2])
            return F.scaled_dot_product_attention(q, k, v, mask)
        is_einsum = self.product == "einsum"
        scores = torch.einsum("nhid,nhjd->nhij", q, k) if is_einsum else q @ k.transpose(-1, -2)
        scores = scores / self.size**0.5 if self.bias is None else scores + self.bias
        weights = scores.softmax(-1)
        return torch.einsum("nhij,nhjd->nhid", weights, v) if is_einsum else weights @ v


class TorchAttention(Block):
    """torch's own multi-head attention."""

    def build(self, rng, width, rank):
        self.attention = nn.MultiheadAttention(
            width, 2 if width % 2 == 0 else 1, batch_first=True, bias=rng.random() < 0.6
        )
        self.first = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Mixer(Block):
    """A layer over tokens, then one over channels."""

    def build(self, rng, width, rank):
        inner = even(rng)
        self.up, self.down, self.tokens = (
            nn.Linear(width, inner),
            nn.Linear(inner, width),
            nn.Conv1d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(x)))


class Positions(Block):
    """A class token, and positions added."""

    def build(self, rng, width, rank):
        self.token = nn.Parameter(torch.randn(1, 1, width)) if rng.random() < 0.5 else None
        self.positions = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.token is None else torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return x + self.positions


TOKEN_BLOCKS = (FeedForward, FeedForward, Narrow, Attention, Attention, Attention, TorchAttention, Mixer, Positions)
