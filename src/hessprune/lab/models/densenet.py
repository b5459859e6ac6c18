"""DenseNet without bottlenecks or compression: every layer reads all the layers before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.lab.models.layers import conv1x1, conv3x3, global_average, initialise


class DenseLayer(nn.Module):
    """Append `growth` channels: `cat(x, conv1(relu(bn1(x))))`."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input and the new channels."""
        return torch.cat([x, self.conv1(F.relu(self.bn1(x)))], dim=1)


class Transition(nn.Module):
    """Halve the resolution between two dense blocks; the number of channels stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels, then average 2×2 pixels."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """DenseNet of depth `3n + 4` for 32×32 images.

    Args:
        depth: Weighted layers; 40 is twelve layers in each of the three blocks.
        num_classes: Outputs.
        in_channels: Channels of the images.
        growth: Channels that a layer adds.

    Raises:
        ArgumentError: `depth` is not `3n + 4`.

    References:
        Huang, Liu, van der Maaten and Weinberger (2017), Densely connected convolutional networks, arXiv:1608.06993.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, *, growth: int = 12) -> None:
        super().__init__()
        num_layers, rest = divmod(depth - 4, 3)
        if rest or num_layers < 1:
            raise ArgumentError(f"`depth` must be 3n + 4, got {shown(depth)}. Take 22, 40 or 100.")
        channels = 16
        added = num_layers * growth
        self.conv1 = conv3x3(in_channels, channels)
        self.dense1 = _dense_block(channels, num_layers, growth)
        self.trans1 = Transition(channels + added)
        self.dense2 = _dense_block(channels + added, num_layers, growth)
        self.trans2 = Transition(channels + 2 * added)
        self.dense3 = _dense_block(channels + 2 * added, num_layers, growth)
        self.bn = nn.BatchNorm2d(channels + 3 * added)
        self.fc = nn.Linear(channels + 3 * added, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        out = self.trans1(self.dense1(self.conv1(x)))
        out = self.dense3(self.trans2(self.dense2(out)))
        return self.fc(global_average(F.relu(self.bn(out))))


def _dense_block(in_channels: int, num_layers: int, growth: int) -> nn.Sequential:
    """Stack layers that each see `growth` channels more."""
    return nn.Sequential(*(DenseLayer(in_channels + index * growth, growth) for index in range(num_layers)))
