"""Wide residual networks: few pre-activation blocks, many channels."""

import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.errors import ArgumentError
from hessprune.foundation.formatting import shown
from hessprune.lab.models.layers import conv1x1, conv3x3, global_average, initialise


class WideBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU; a projected shortcut reads the first activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, bias: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride=stride, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, bias=bias)
        self.projects = stride != 1 or in_channels != channels
        self.shortcut = conv1x1(in_channels, channels, stride=stride, bias=bias) if self.projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + self.shortcut(active if self.projects else x)


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`, without dropout.

    Args:
        depth: Weighted layers, `6n + 4`.
        num_classes: Outputs.
        in_channels: Channels of the images.
        widen: The stages have `16 widen`, `32 widen` and `64 widen` channels.
        bias: Give the convolutions biases. WRN-28-8 then has the 23.36 M parameters of EHAP, without them 23.35 M.

    Raises:
        ArgumentError: `depth` is not `6n + 4`.

    References:
        Zagoruyko and Komodakis (2016), Wide residual networks, arXiv:1605.07146, table 1.
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, *, widen: int = 8, bias: bool = True
    ) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if rest or num_blocks < 1:
            raise ArgumentError(f"`depth` must be 6n + 4, got {shown(depth)}. Take 16, 22, 28 or 40.")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = conv3x3(in_channels, widths[0], bias=bias)
        self.layer1 = _stage(widths[0], widths[1], 1, num_blocks=num_blocks, bias=bias)
        self.layer2 = _stage(widths[1], widths[2], 2, num_blocks=num_blocks, bias=bias)
        self.layer3 = _stage(widths[2], widths[3], 2, num_blocks=num_blocks, bias=bias)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) → (N, num_classes)
        """Return the logits."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(global_average(F.relu(self.bn1(out))))


def _stage(in_channels: int, channels: int, stride: int, *, num_blocks: int, bias: bool) -> nn.Sequential:
    """Stack blocks; the first one changes the shape."""
    first = WideBlock(in_channels, channels, stride, bias=bias)
    return nn.Sequential(first, *(WideBlock(channels, channels, 1, bias=bias) for _ in range(num_blocks - 1)))
