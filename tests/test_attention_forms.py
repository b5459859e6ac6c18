"""Rarer forms of attention: heads are found, half of them go, and slicing equals masking by an independent mask."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessprune.foundation.modules import call_model
from hessprune.structure.outputs import difference
from tests.networks.check import masked
from tests.test_attention_layouts import (
    HEADS,
    LONGER,
    PADDING,
    Around,
    Layout,
    Written,
    X,
    build,
    halved,
    heads_of,
    written,
)

Parts = tuple[Tensor, Tensor, Tensor]


def parts(x: Tensor, y: Tensor, heads: int = HEADS) -> Parts:
    """Return queries, keys and values `(batch, heads, tokens, width)`."""
    q, k, v = (part.view(*x.shape[:2], heads, 24 // heads).transpose(1, 2) for part in y.chunk(3, -1))
    return q, k, v


def joined(scores: Tensor, v: Tensor) -> Tensor:
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Masked(Written):
    """Attention whose mask has an entry for each head; `spread` makes it."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = parts(x, self.qkv(x))
        scores, n = q @ k.transpose(-2, -1), x.shape[1]
        mask = self.causal[:n, :n].view(1, 1, n, n) if mask is None else mask.view(-1, 1, 1, n)
        return self.proj(joined(scores.masked_fill(self.core(self, mask, scores), -torch.inf), v))


def merged(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Heads beside the batch; the last size is the width of the input."""
    b, n, d = x.shape
    q, k, v = (part.view(b, n, m.heads, 6).transpose(1, 2).reshape(b * m.heads, -1, 6) for part in y.chunk(3, -1))
    context = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return context.view(b, m.heads, n, 6).transpose(1, 2).reshape(b, n, d)


def counted(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """Two attributes count the heads, and two others are as large by chance."""
    q, k, v = (z.view(*x.shape[:2], m.heads, 6).transpose(1, 2) for z in y.chunk(3, -1))
    context = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    return context.transpose(1, 2).reshape(*x.shape[:2], m.all_heads) / m.scale


class Related(Written):
    """Attention with relative positions, for which all heads read one table; `core` reads it."""

    def __init__(self, core: Callable[..., Tensor], rows: int = 31) -> None:
        super().__init__(core)
        self.keys, self.values = nn.Embedding(rows, 6), nn.Embedding(rows, 6)
        self.table, self.matrix, self.map = torch.zeros(rows, 6), nn.Parameter(torch.zeros(6, 6)), nn.Linear(6, 6)
        self.table = nn.Parameter(self.table)
        places = torch.arange(16)
        self.register_buffer("apart", places[:, None] - places + 15)
        self.bias = nn.Linear(rows, HEADS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (q, k, v), n = parts(x, self.qkv(x)), x.shape[1]
        return self.proj(self.core(self, q, k, v, self.apart[:n, :n]).transpose(1, 2).flatten(2))


def by_einsum(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + torch.einsum("bhld,lrd->bhlr", q, m.keys(apart))).softmax(-1) @ v


def by_matmul(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    b, h, n, d = q.shape
    rows = q.permute(2, 0, 1, 3).reshape(n, b * h, d) @ m.keys(apart).transpose(-2, -1)
    return (q @ k.transpose(-2, -1) + rows.transpose(0, 1).reshape(b, h, n, n)).softmax(-1) @ v


def in_keys_and_values(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    weights = (q @ k.transpose(-2, -1) + torch.einsum("bhld,lrd->bhlr", q, m.keys(apart))).softmax(-1)
    return weights @ v + torch.einsum("bhlr,lrd->bhld", weights, m.values(apart))


def by_table(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) + torch.einsum("bhld,lrd->bhlr", q, m.table[apart])).softmax(-1) @ v


def by_layer(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    """All heads go through the same linear map of their width."""
    return (m.map(q) @ k.transpose(-2, -1)).softmax(-1) @ (v @ m.matrix)


def by_bias(m: Any, q: Tensor, k: Tensor, v: Tensor, apart: Tensor) -> Tensor:
    """The weight of a linear layer holds a bias for each head and distance, which the forward computes."""
    nothing = (m.table.sum() > 1e9).long()
    bias = m.bias.weight[:, apart[0] + nothing].index_select(1, (apart % len(apart) + nothing).flatten())
    scores = q @ k.transpose(-2, -1) + bias.view(-1, *apart.shape) + m.bias.weight.t()[apart].permute(2, 0, 1)
    return scores.softmax(-1) @ v


class Latent(nn.Module):
    """Keys and values from one narrow layer, widths cut in unequal parts, and a rotated part that all heads share."""

    def __init__(self, rotate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.down, self.up = nn.Linear(24, HEADS * 10), nn.Linear(24, 8 + 4), nn.Linear(8, HEADS * 11)
        self.proj, self.heads, self.rotate = nn.Linear(HEADS * 5, 24), HEADS, rotate

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, turned = self.q(x).view(b, n, -1, 10).transpose(1, 2).split([6, 4], -1)
        low, shared = self.down(x).split([8, 4], -1)
        k, v = self.up(low).view(b, n, -1, 11).transpose(1, 2).split([6, 5], -1)
        shared = self.rotate(shared.view(b, 1, n, 4)).expand(*k.shape[:-1], -1)
        scores = torch.cat([q, self.rotate(turned)], -1) @ torch.cat([k, shared], -1).transpose(-2, -1)
        return self.proj(joined(scores, v))


def turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def turned_as_complex(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(pairs).flatten(-2)


def latent(rotate: Callable[[Tensor], Tensor]) -> Layout:
    return Layout(lambda: Around(Latent(rotate), lambda m, x: m(x)), (X,), others=(LONGER,))


def related(core: Callable[..., Tensor]) -> Layout:
    return Layout(lambda: Around(Related(core), lambda m, x: m(x)), (X,), others=(LONGER,))


def masking(spread: Callable[[Any, Tensor, Tensor], Tensor], *mask: Tensor, **attributes: Any) -> Layout:
    return Layout(lambda: Around(Masked(spread, **attributes), lambda m, *x: m(*x)), (X, *mask))


LAYOUTS: dict[str, Layout] = {
    "a mask as large as the scores": masking(lambda m, mask, scores: mask.expand_as(scores)),
    "padding as large as the scores": masking(lambda m, mask, scores: mask.expand_as(scores), PADDING),
    "a mask over heads": masking(lambda m, mask, scores: mask.expand(2, m.heads, 6, 6), heads=4),
    "padding over heads": masking(lambda m, mask, scores: mask.expand(-1, 4, 6, -1), PADDING),
    "padding repeated over heads": masking(
        lambda m, mask, scores: mask.repeat_interleave(m.heads, 1), PADDING, heads=4
    ),
    "padding tiled over heads": masking(lambda m, mask, scores: mask.repeat(1, m.heads, 6, 1), PADDING, heads=4),
    "heads beside the batch, and a whole width": written(merged, heads=4),
    "relative keys by einsum": related(by_einsum),
    "relative keys by matmul": related(by_matmul),
    "relative keys of a table": related(by_table),
    "a bias by numbers": related(by_bias),
    "relative keys and values": related(in_keys_and_values),
    "one map for all heads": related(by_layer),
    "latent keys and values": latent(turned),
    "latent keys, complex": latent(turned_as_complex),
    "attributes as large by chance": written(counted, heads=4, all_heads=24, scale=4, size=24),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_heads_are_found_and_slicing_is_masking(name: str) -> None:
    layout = LAYOUTS[name]
    model = build(layout)
    groups, plan, pruned = halved(model, layout)
    assert len(heads_of(groups)) == layout.groups
    assert all(len(plan.removed[group.name]) == HEADS // 2 for group in heads_of(groups))
    expected = masked(model, groups, plan.removed)
    for inputs in filter(None, (layout.inputs, layout.others)):
        with torch.no_grad():
            assert difference(call_model(expected, inputs), call_model(pruned, inputs)) < 1e-10
