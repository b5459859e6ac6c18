"""Blocks of convolutional networks: each is drawn for a width, keeps the size of its input, and says its own width."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.parts import TRANSPOSED, Activation, conv, conv_norm, even, norm


class Block(nn.Module):
    """`(N, width, *) → (N, out, *)`."""

    def __init__(self, rng: random.Random, width: int, rank: int) -> None:
        super().__init__()
        self.out = width
        self.rank = rank
        self.build(rng, width, rank)


class Plain(Block):
    def build(self, rng, width, rank):
        self.out = even(rng)
        self.body = conv_norm(rng, rank, width, self.out)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(Block):
    def build(self, rng, width, rank):
        inner = even(rng)
        self.first, self.second = conv_norm(rng, rank, width, inner), conv(rng, rank, inner, width)
        self.norm, self.act, self.last = norm(rng, rank, width), Activation(rng, width), rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.second(self.first(x)))
        return self.act(x + y) if self.last else x + self.act(y)


class Concat(Block):
    def build(self, rng, width, rank):
        widths = [even(rng) for _ in range(rng.randint(1, 2))]
        self.branches = nn.ModuleList([conv_norm(rng, rank, width, each) for each in widths])
        self.order = list(range(len(widths) + 1))
        rng.shuffle(self.order)
        self.out = width + sum(widths)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x, *(branch(x) for branch in self.branches)]
        return torch.cat([parts[number] for number in self.order], 1)


class Dense(Block):
    """Each branch reads all before it."""

    def build(self, rng, width, rank):
        grown = even(rng)
        self.first = conv_norm(rng, rank, width, grown)
        self.norm, self.second = norm(rng, rank, width + grown), conv(rng, rank, width + grown, grown)
        self.out = width + 2 * grown

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], 1)
        return torch.cat([self.second(self.norm(x)), x], 1)


class Split(Block):
    """Takes the channels apart, works on one part, and joins them in any order."""

    def build(self, rng, width, rank):
        self.wide = conv_norm(rng, rank, width, 12)
        self.way, self.parts = rng.choice(("chunk", "split", "sizes", "tensor_split", "unequal")), rng.choice((2, 3))
        size = 12 // self.parts
        self.sizes = [size] * self.parts if self.way != "unequal" else [5, 7]
        self.inner = conv_norm(rng, rank, self.sizes[0], self.sizes[0])
        self.order = list(range(len(self.sizes) + 1))
        rng.shuffle(self.order)
        self.out = 12 + self.sizes[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        if self.way == "chunk":
            parts = x.chunk(self.parts, 1)
        elif self.way == "split":
            parts = x.split(x.shape[1] // self.parts, 1)
        elif self.way == "tensor_split":
            parts = x.tensor_split(self.parts, 1)
        else:
            parts = x.split(self.sizes, 1)
        parts = [*parts, self.inner(parts[0])]
        return torch.cat([parts[number] for number in self.order], 1)


class Shuffle(Block):
    """Grouped convolutions with a channel shuffle between them."""

    def build(self, rng, width, rank):
        self.groups = rng.choice((2, 3))
        self.first = conv_norm(rng, rank, width, 12)
        self.grouped = conv_norm(rng, rank, 12, 12, groups=rng.choice((self.groups, 2, 4, 6)))
        self.last, self.module = conv_norm(rng, rank, 12, 12, groups=self.groups), rng.random() < 0.3
        self.out = 12

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x))
        if self.module and self.rank == 2:
            return self.last(F.channel_shuffle(x, self.groups))
        shape = x.shape
        x = x.view(shape[0], self.groups, shape[1] // self.groups, *shape[2:]).transpose(1, 2)
        return self.last(x.reshape(shape))


class Depthwise(Block):
    def build(self, rng, width, rank):
        self.out = even(rng)
        twice = rng.choice((1, 1, 2))
        self.body = nn.Sequential(
            conv(rng, rank, width, width * twice, 3, groups=width),
            norm(rng, rank, width * twice),
            Activation(rng, width * twice),
            conv_norm(rng, rank, width * twice, self.out, kernel=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Grouped(Block):
    def build(self, rng, width, rank):
        self.out = even(rng) * 3
        self.wide = conv(rng, rank, width, 12)
        self.groups = conv_norm(rng, rank, 12, 12 if self.out % 12 else self.out, groups=rng.choice((2, 3, 4, 6)))
        self.out = 12 if self.out % 12 else self.out

    def forward(self, x: Tensor) -> Tensor:
        return self.groups(self.wide(x))


class Transposed(Block):
    """Doubles the size, and takes the mean again."""

    def build(self, rng, width, rank):
        self.groups = rng.choice((1, 1, 2 - width % 2, width))
        self.out = rng.choice((1, 2)) * width
        self.up = TRANSPOSED[rank](width, self.out, 2, stride=2, groups=self.groups, bias=rng.random() < 0.5)
        self.norm = norm(rng, rank, self.out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.up(x)))
        return F.avg_pool2d(x, 2) if self.rank == 2 else F.avg_pool1d(x, 2)
