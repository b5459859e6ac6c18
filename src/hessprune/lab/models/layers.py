"""What the families share: 3×3 convolutions, He initialisation, the pooled feature vector."""

from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 3×3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)


def conv1x1(in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 1×1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=bias)


def global_average(x: Tensor) -> Tensor:  # (N, C, H, W) → (N, C)
    """Average over space, whatever its size."""
    return x.mean(dim=(2, 3))


def initialise(model: nn.Module) -> None:
    """Draw every convolution from He's normal distribution, std² = 2 / fan_out, in place.

    BatchNorm and linear layers keep torch's defaults.

    References:
        He, Zhang, Ren and Sun (2015), Delving deep into rectifiers, arXiv:1502.01852, eq. 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
