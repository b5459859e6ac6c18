"""Pre-activation residual network with bottleneck blocks of constant width, the PreResNet-29 of HAP."""

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.lab.models.layers import conv1x1, conv3x3, global_average, initialise


class PreActBottleneck(nn.Module):
    """1×1, 3×3, 1×1, each after BatchNorm and ReLU; the shortcut is a plain 1×1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride=stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = conv1x1(channels, channels)
        changes = stride != 1 or in_channels != channels
        self.downsample = conv1x1(in_channels, channels, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + self.downsample(x)


class PreResNet(nn.Module):
    """The pre-activation ResNet of depth `9n + 2` with stages of `width`, `2 width` and `4 width` channels.

    Unlike in the original, a bottleneck here does not expand: its three convolutions share one width, as in the
    network that HAP prunes.

    Args:
        depth: Weighted layers: 29 is three blocks a stage.
        num_classes: Outputs.
        in_channels: Channels of the images.
        width: Channels of the stem and the first stage.

    Raises:
        ArgumentError: `depth` is not `9n + 2`.

    References:
        He, Zhang, Ren and Sun (2016), Identity mappings in deep residual networks, arXiv:1603.05027, fig. 1b.
        Yu et al. (2022), Hessian-aware pruning and optimal neural implant, arXiv:2101.08940, §4.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3, *, width: int = 64) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 2, 9)
        if rest or num_blocks < 1:
            raise ArgumentError(f"`depth` must be 9n + 2, got {shown(depth)}. Take 20, 29, 56 or 110.")
        self.conv1 = conv3x3(in_channels, width)
        self.layer1 = _stage(width, width, 1, num_blocks=num_blocks)
        self.layer2 = _stage(width, 2 * width, 2, num_blocks=num_blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, num_blocks=num_blocks)
        self.bn = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(global_average(F.relu(self.bn(out))))


def _stage(in_channels: int, channels: int, stride: int, *, num_blocks: int) -> nn.Sequential:
    """Stack blocks; the first one changes the shape."""
    first = PreActBottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(PreActBottleneck(channels, channels, 1) for _ in range(num_blocks - 1)))
