"""Layers that the blocks draw: convolutions of one or two dimensions, norms, activations."""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d}
ACTIVATIONS = (F.relu, F.gelu, F.silu, torch.sigmoid, torch.tanh, F.softplus, F.leaky_relu, torch.cos, F.hardswish)


class Activation(nn.Module):
    """An activation by value."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        self.function = rng.choice(ACTIVATIONS)
        if rng.random() < 0.15:
            self.function = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(rng: random.Random, rank: int, inside: int, outside: int, kernel: int | None = None, **options) -> nn.Module:
    """Return a convolution that keeps the size of its input, if its stride is 1."""
    kernel = rng.choice((1, 3)) if kernel is None else kernel
    dilation = rng.choice((1, 1, 2)) if kernel > 1 else 1
    mode = rng.choice(("zeros", "zeros", "zeros", "circular", "reflect")) if kernel > 1 else "zeros"
    settings = {"dilation": dilation, "padding_mode": mode, "bias": rng.random() < 0.6} | options
    return CONVOLUTIONS[rank](inside, outside, kernel, padding=dilation * (kernel // 2), **settings)


def norm(rng: random.Random, rank: int, channels: int) -> nn.Module:
    """Return a norm over channels, or none."""
    groups = rng.choice([size for size in range(1, channels + 1) if channels % size == 0])
    makers = {
        "batch": lambda: BATCH_NORMS[rank](channels, affine=rng.random() < 0.8),
        "instance": lambda: INSTANCE_NORMS[rank](channels, affine=rng.random() < 0.5),
        "group": lambda: nn.GroupNorm(groups, channels, affine=rng.random() < 0.7),
        "none": nn.Identity,
    }
    return makers[rng.choice(("batch", "batch", "batch", "none", "none", "group", "instance"))]()


def conv_norm(rng: random.Random, rank: int, inside: int, outside: int, **options) -> nn.Sequential:
    """Return a convolution with a norm and an activation."""
    return nn.Sequential(
        conv(rng, rank, inside, outside, **options), norm(rng, rank, outside), Activation(rng, outside)
    )


def even(rng: random.Random) -> int:
    """Return a small even width."""
    return rng.choice((4, 6, 8, 12))


def space(x: Tensor) -> tuple[int, ...]:
    """Return the axes behind batch and channels."""
    return tuple(range(2, x.dim()))
