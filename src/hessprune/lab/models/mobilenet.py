"""A small network of inverted residuals: expansion, depthwise convolution, squeeze-and-excitation, projection."""

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.lab.models.layers import conv1x1, conv3x3, global_average, initialise

# Output channels and stride of each block.
BLOCKS = ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in [0, 1] that reads the mean of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = conv1x1(channels, squeezed, bias=True)
        self.fc2 = conv1x1(squeezed, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gates."""
        squeezed = x.mean(dim=(2, 3), keepdim=True)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(squeezed))))


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, gate, project; add the input where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = conv1x1(in_channels, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.gate = SqueezeExcite(hidden, hidden // 4)
        self.project = conv1x1(hidden, channels)
        self.bn3 = nn.BatchNorm2d(channels)
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        out = F.hardswish(self.bn1(self.expand(x)))
        out = self.gate(F.hardswish(self.bn2(self.depthwise(out))))
        out = self.bn3(self.project(out))
        return x + out if self.adds else out


class MobileNetTiny(nn.Module):
    """Five inverted residuals between a 3×3 stem and a 1×1 head.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Multiplier of all channel counts.
        expansion: Hidden channels of a block for each of its input channels.

    References:
        Howard et al. (2019), Searching for MobileNetV3, arXiv:1905.02244, §5.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: float = 1.0, expansion: int = 4) -> None:
        super().__init__()
        channels = round(16 * width)
        head = round(160 * width)
        self.conv1 = conv3x3(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        blocks = []
        for base, stride in BLOCKS:
            blocks.append(InvertedResidual(channels, round(base * width), stride, expansion=expansion))
            channels = round(base * width)
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = conv1x1(channels, head)
        self.bn2 = nn.BatchNorm2d(head)
        self.classifier = nn.Linear(head, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        out = self.blocks(F.hardswish(self.bn1(self.conv1(x))))
        return self.classifier(global_average(F.hardswish(self.bn2(self.conv2(out)))))
