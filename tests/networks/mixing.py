"""Blocks of convolutional networks that reuse, gate or rearrange what they read, and the list of all blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.padding import ChannelPad
from tests.networks.blocks import (
    Block,
    Concat,
    Dense,
    Depthwise,
    Grouped,
    Plain,
    Residual,
    Shuffle,
    Split,
    Transposed,
)  # fmt: skip
from tests.networks.parts import conv, conv_norm, even, space


class Gate(Block):
    """Squeeze and excite, with the mean taken in several ways."""

    def build(self, rng, width, rank):
        self.linear, self.way = rng.random() < 0.5, rng.choice((torch.sigmoid, F.hardsigmoid, torch.tanh))
        inner = even(rng)
        if self.linear:
            self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        else:
            self.down, self.up = conv(rng, rank, width, inner, 1), conv(rng, rank, inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(space(x), keepdim=not self.linear)
        scale = self.way(self.up(F.relu(self.down(pooled))))
        return x * (scale.reshape(*scale.shape, *[1] * self.rank) if self.linear else scale)


class Glu(Block):
    def build(self, rng, width, rank):
        self.out, self.way = even(rng), rng.choice(("glu", "chunk", "two"))
        self.body = conv(rng, rank, width, 2 * self.out if self.way != "two" else self.out)
        self.other = conv(rng, rank, width, self.out) if self.way == "two" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "glu":
            return F.glu(self.body(x), 1)
        a, b = (self.body(x), self.other(x)) if self.way == "two" else self.body(x).chunk(2, 1)
        return a * torch.sigmoid(b)


class SpaceGate(Block):
    def build(self, rng, width, rank):
        self.body = conv_norm(rng, rank, width, width)
        self.way = rng.choice(("one", "mean", "max"))
        self.gate = conv(rng, rank, width if self.way == "one" else 1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        seen = {"one": lambda: y, "mean": lambda: y.mean(1, keepdim=True), "max": lambda: y.amax(1, keepdim=True)}
        return y * torch.sigmoid(self.gate(seen[self.way]()))


class PixelShuffle(Block):
    def build(self, rng, width, rank):
        self.out, self.way = even(rng), rng.choice(("up", "down", "view"))
        if rank == 1:
            self.way = "view"
        self.wide, self.last = conv(rng, rank, width, 4 * self.out), conv(rng, rank, 4 * self.out, self.out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "up":
            return F.avg_pool2d(F.pixel_shuffle(self.wide(x), 2), 2)
        if self.way == "down":
            x = F.interpolate(self.wide(x)[:, : self.out], scale_factor=2.0)
            return self.last(F.pixel_unshuffle(x, 2))
        n, c, *size = self.wide(x).shape
        return self.wide(x).view(n, 4, c // 4, *size).mean(1)


class Shared(Block):
    """One module called twice, in a row or side by side."""

    def build(self, rng, width, rank):
        self.twice = conv_norm(rng, rank, width, width, padding_mode="zeros")
        depthwise = conv(rng, rank, width, width, 3, groups=width, padding_mode="zeros")
        self.way = rng.choice(("row", "side", "scales"))
        self.twice = depthwise if rng.random() < 0.3 else self.twice
        self.out = 2 * width if self.way == "side" else width

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "row":
            return self.twice(self.twice(x))
        if self.way == "side":
            return torch.cat([self.twice(x), self.twice(x.flip(-1))], 1)
        small = F.avg_pool2d(x, 2) if self.rank == 2 else F.avg_pool1d(x, 2)
        return self.twice(x) + self.twice(small).mean(space(x), keepdim=True)


class Bare(Block):
    """Parameters and buffers used as they are: scales, shifts, a stored mean and deviation, a mixing matrix."""

    def build(self, rng, width, rank):
        self.way = rng.choice(("scale", "shift", "standard", "matrix", "weight", "flat", "einsum"))
        self.scale = nn.Parameter(torch.rand(width, *[1] * rank) + 0.5)
        self.register_buffer("mean", torch.randn(1, width, *[1] * rank))
        self.register_buffer("deviation", torch.rand(1, width, *[1] * rank) + 0.5)
        if self.way in {"matrix", "einsum", "weight"}:
            self.out = even(rng)
            self.matrix = nn.Parameter(torch.randn(self.out, width) / 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "scale":
            return x * self.scale
        if self.way == "shift":
            return x + self.scale
        if self.way == "standard":
            return (x - self.mean) / self.deviation
        if self.way == "flat":
            return x * torch.sigmoid(self.scale.flatten()).view(1, -1, *[1] * self.rank)
        if self.way == "matrix":
            return (self.matrix @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.way == "weight":
            weight = self.matrix.reshape(*self.matrix.shape, *[1] * self.rank)
            return (F.conv2d if self.rank == 2 else F.conv1d)(x, weight)
        return torch.einsum("oc,nc...->no...", self.matrix, x) if self.rank == 0 else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw" if self.rank == 2 else "oc,ncl->nol", self.matrix, x)


class Written(Block):
    """Widths and positions that stand in the source code."""

    def build(self, rng, width, rank):
        self.way = rng.choice(
            ("root", "flip", "roll", "reverse", "halves", "repeat", "expand", "table", "number", "space", "fold", "pad",
             "order", "last", "interleave", "attribute", "lines", "in_place")
        )  # fmt: skip
        self.half, self.width = width // 2, width
        self.out = {"repeat": 2, "expand": 2, "interleave": 2}.get(self.way, 1) * width
        self.out = self.half if self.way == "halves" else self.out + 3 if self.way == "pad" else self.out
        self.pad = ChannelPad(1, 2) if rng.random() < 0.6 else None
        self.table = torch.linspace(0.5, 1.5, width).double().view(1, -1, *[1] * rank)
        self.register_buffer("order", torch.randperm(width, generator=torch.Generator().manual_seed(width)))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self.way}")(x)

    def _root(self, x):
        return x / x.shape[1] ** 0.5

    def _flip(self, x):
        return x + x.flip(1)

    def _roll(self, x):
        return x.roll(2, 1)

    def _reverse(self, x):
        return torch.cat(x.split(self.half, 1)[::-1], 1)

    def _halves(self, x):
        return x[:, : self.half] + x[:, self.half : 2 * self.half]

    def _repeat(self, x):
        return x.repeat(1, 2, *[1] * self.rank)

    def _interleave(self, x):
        return x.repeat_interleave(2, 1)

    def _expand(self, x):
        return x.unsqueeze(1).expand(-1, 2, *x.shape[1:]).flatten(1, 2)

    def _table(self, x):
        return (x * self.table).relu() + self.table

    def _number(self, x):
        return x * torch.arange(1.0, 1.0 + x.shape[1], dtype=x.dtype).view(1, -1, *[1] * self.rank)

    def _space(self, x):
        return x.roll(1, -1) + x.flip(-1)

    def _fold(self, x):
        return x.unflatten(1, (-1, 2)).flip(2).flatten(1, 2)

    def _pad(self, x):
        return self.pad(x) if self.pad else F.pad(x, (0, 0) * self.rank + (1, 2))

    def _order(self, x):
        return x[:, self.order]

    def _attribute(self, x):
        return x.reshape(-1, self.width, x[0, 0].numel()).relu().reshape(-1, self.width, *x.shape[2:])

    def _lines(self, x):
        return x.reshape(-1, 8).cumsum(-1).reshape(x.shape)

    def _in_place(self, x):
        x = x * 2.0
        x[:, :, 0] = 0.5
        return x.mul_(x.sigmoid()).add_(1.0)

    def _last(self, x):
        return x + x[:, -1:]


class Branches(Block):
    """Branches stacked and summed, or weighed by a softmax over branches."""

    def build(self, rng, width, rank):
        self.out = even(rng)
        self.left, self.right = conv_norm(rng, rank, width, self.out), conv_norm(rng, rank, width, self.out)
        self.weigh, self.excite = rng.random() < 0.5, nn.Linear(self.out, 2 * self.out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([self.left(x), self.right(x)], 1)
        if not self.weigh:
            return x.sum(1)
        weights = self.excite(x.sum(1).mean(space(x[:, 0]))).view(x.shape[0], 2, -1).softmax(1)
        return (x * weights.reshape(*weights.shape, *[1] * self.rank)).sum(1)


class NonLocal(Block):
    """Every position attends to every other."""

    def build(self, rng, width, rank):
        inner = even(rng)
        self.theta, self.phi, self.value = (conv(rng, rank, width, inner, 1) for _ in range(3))
        self.last, self.way = conv(rng, rank, inner, width, 1), rng.choice(("matmul", "einsum", "bmm", "channels"))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, value = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.value))
        if self.way == "channels":
            y = (theta @ phi.transpose(1, 2)).softmax(-1) @ value
        elif self.way == "einsum":
            y = torch.einsum("nij,ncj->nci", torch.einsum("nci,ncj->nij", theta, phi).softmax(-1), value)
        else:
            product = torch.bmm if self.way == "bmm" else torch.matmul
            y = product(value, product(theta.transpose(1, 2), phi).softmax(-1).transpose(1, 2))
        return x + self.last(y.reshape(x.shape[0], -1, *x.shape[2:]))


class ChannelsLast(Block):
    """A depthwise convolution, then linear layers over channels that lie last, with a scale for each channel."""

    def build(self, rng, width, rank):
        inner = even(rng)
        self.depthwise = conv(rng, rank, width, width, 3, groups=width)
        self.norm = nn.LayerNorm(width) if rng.random() < 0.4 else nn.Identity()
        self.up, self.down, self.scale = (
            nn.Linear(width, inner),
            nn.Linear(inner, width),
            nn.Parameter(torch.rand(width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).movedim(-1, 1)


class Tied(Block):
    """Two layers with one weight."""

    def build(self, rng, width, rank):
        options = {"groups": width} if rng.random() < 0.4 else {}
        self.first, self.second = (conv(rng, rank, width, width, 3, **options) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


BLOCKS = (
    Plain, Plain, Residual, Residual, Concat, Dense, Split, Shuffle, Depthwise, Grouped, Transposed, Gate, Glu,
    SpaceGate, PixelShuffle, Shared, Bare, Written, Branches, NonLocal,
    ChannelsLast, Tied,
)  # fmt: skip
