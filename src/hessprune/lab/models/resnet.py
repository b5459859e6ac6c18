"""The residual networks of He et al. for 32×32 images: depth 6n + 2, three stages, shortcuts of option A or B."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.checks import check_choice
from hessprune.foundation.formatting import shown
from hessprune.foundation.padding import ChannelPad
from hessprune.lab.models.layers import conv1x1, conv3x3, global_average, initialise

Shortcut = Literal["A", "B"]


class Subsample(nn.Module):
    """Keep every `stride`-th pixel: `(N, C, H, W) → (N, C, ⌈H/stride⌉, ⌈W/stride⌉)`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Slice both spatial axes."""
        return x[:, :, :: self.stride, :: self.stride]

    def extra_repr(self) -> str:
        """Show the stride in the printed model."""
        return f"stride={self.stride}"


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut: `relu(x' + bn2(conv2(relu(bn1(conv1(x))))))`."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, option: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride, option=option)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of depth `6n + 2`.

    Args:
        depth: Weighted layers: 8, 14, 20, 32, 44, 56, 110, …
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the stages have `width`, `2 width`, `4 width`.
        option: `"A"`: the shortcut drops every other pixel and pads channels with zeros, half in front and half behind.
            `"B"`: a 1×1 convolution and a BatchNorm where the shape changes.

    Raises:
        ArgumentError: `depth` is not `6n + 2`, or `option` is neither A nor B.

    References:
        He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition, arXiv:1512.03385, §4.2.

    Example:
        >>> sum(p.numel() for p in ResNet(20, num_classes=10).parameters())
        269722
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, *, width: int = 16, option: Shortcut = "A"
    ) -> None:
        super().__init__()
        check_choice("option", option, ["A", "B"])
        num_blocks, rest = divmod(depth - 2, 6)
        if rest or num_blocks < 1:
            raise ArgumentError(f"`depth` must be 6n + 2, got {shown(depth)}. Take 20, 32, 44, 56 or 110.")
        self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, num_blocks=num_blocks, option=option)
        self.layer2 = _stage(width, 2 * width, 2, num_blocks=num_blocks, option=option)
        self.layer3 = _stage(2 * width, 4 * width, 2, num_blocks=num_blocks, option=option)
        self.linear = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(global_average(out))


def _stage(in_channels: int, channels: int, stride: int, *, num_blocks: int, option: Shortcut) -> nn.Sequential:
    """Stack blocks; the first one changes the shape."""
    first = BasicBlock(in_channels, channels, stride, option=option)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, option=option) for _ in range(num_blocks - 1)))


def _shortcut(in_channels: int, channels: int, stride: int, *, option: Shortcut) -> nn.Module:
    """Return what carries the input past a block: nothing where the shape stays."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    if option == "B":
        return nn.Sequential(conv1x1(in_channels, channels, stride=stride), nn.BatchNorm2d(channels))
    before = (channels - in_channels) // 2
    return nn.Sequential(Subsample(stride), ChannelPad(before, channels - in_channels - before))
