"""Small awkward networks, one per structural difficulty, and the networks of the papers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.foundation.padding import ChannelPad
from hessprune.lab.models import build_model


def conv_bn(inside: int, outside: int, kernel: int = 3, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


def classify(x: Tensor, head: nn.Linear) -> Tensor:
    return head(x.mean((2, 3)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, stride=2), conv_bn(12, 10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.body(x), self.head)


class Residual(nn.Module):
    """Two residual blocks on one stream, the second with a zero-padded shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner, self.outer = conv_bn(8, 6), nn.Conv2d(6, 8, 3, padding=1)
        self.wide, self.pad = conv_bn(8, 16, stride=2), ChannelPad(4, 4)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.outer(self.inner(x)))
        return classify(self.wide(x) + self.pad(x[:, :, ::2, ::2]), self.head)


class ConstantPad(nn.Module):
    """A zero-padded shortcut whose amounts are hidden in the source code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = conv_bn(3, 8), conv_bn(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return classify(self.wide(x) + F.pad(x, (0, 0, 0, 0, 4, 4)), self.head)


class Concat(nn.Module):
    """Dense connections: each layer reads everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 6), conv_bn(6, 5), conv_bn(11, 4)
        self.norm, self.head = nn.BatchNorm2d(15), nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        x = torch.cat([a, b], 1)
        return classify(self.norm(torch.cat([x, self.c(x)], 1)), self.head)


class ChunkCat(nn.Module):
    """The C2f block: split in two, process one half, concatenate all."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.inner, self.merge = conv_bn(3, 12, 1), conv_bn(6, 6), conv_bn(18, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x).chunk(2, 1)
        return classify(self.merge(torch.cat([left, right, self.inner(right)], 1)), self.head)


class UnequalSplit(nn.Module):
    """Sizes in the source code: what they touch must stay, the rest may go."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.inner, self.head = conv_bn(3, 12, 1), conv_bn(8, 8), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(x).split([4, 8], 1)
        return classify(torch.cat([left, self.inner(right)], 1), self.head)


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = conv_bn(3, 12), conv_bn(12, 12, 1, groups=2)
        self.depthwise, self.last = nn.Conv2d(12, 12, 3, padding=1, groups=12), conv_bn(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return classify(self.last(self.depthwise(x)), self.head)


class Grouped(nn.Module):
    """ResNeXt (many groups) and AlexNet (few groups) in one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.many = conv_bn(3, 24, 1), conv_bn(24, 24, 3, groups=8)
        self.b, self.few, self.last = conv_bn(24, 16, 1), conv_bn(16, 12, 3, groups=2), conv_bn(12, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return classify(self.last(self.few(self.b(self.many(self.a(x))))), self.head)


class Inverted(nn.Module):
    """Inverted residual with depthwise multiplier, hard-swish and squeeze–excite (σ(0) ≠ 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv_bn(3, 8), conv_bn(8, 12, 1)
        self.depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project, self.head = nn.Conv2d(24, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.hardswish(self.depthwise(self.expand(x)))
        gate = self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        return classify(x + self.project(y * torch.sigmoid(gate)), self.head)


class SpatialGate(nn.Module):
    """One gate channel scales all others: it stays, they may go."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.last = conv_bn(3, 10), nn.Conv2d(10, 1, 7, padding=3), conv_bn(10, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return classify(self.last(x * torch.sigmoid(self.gate(x))), self.head)


class Transposed(nn.Module):
    """A small U-Net: pooling, transposed convolution, skip connection, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = conv_bn(3, 8), conv_bn(8, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.up_grouped = nn.ConvTranspose2d(14, 8, 2, stride=2, groups=2)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        up = F.relu(self.up(self.middle(F.max_pool2d(down, 2))))
        merged = F.interpolate(torch.cat([down, up], 1), scale_factor=0.5, mode="nearest")
        return self.out(F.leaky_relu(self.up_grouped(merged)))


class Norms(nn.Module):
    """GroupNorm (units are whole groups), InstanceNorm, and LayerNorm over channels (frozen)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(4, 12)
        self.b, self.instance = nn.Conv2d(12, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)
        self.c, self.layer = nn.Conv2d(8, 6, 1), nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.a(x)))
        x = self.c(F.elu(self.instance(self.b(x))))
        return self.head(self.layer(x.permute(0, 2, 3, 1)).mean((1, 2)))


class Flatten(nn.Module):
    """Flatten into a linear layer: each channel owns several columns; PReLU has a slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.slope, self.pool = nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.AvgPool2d(2)
        self.hidden, self.head = nn.Linear(8 * 9, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.slope(self.conv(x)))
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


class Shared(nn.Module):
    """A module called twice, and one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.last = conv_bn(3, 8), nn.Conv2d(8, 8, 3, padding=1), conv_bn(8, 6)
        self.left, self.right = nn.Linear(6, 10), nn.Linear(6, 10)
        self.right.weight = self.left.weight
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.twice(self.stem(x)))))
        x = self.last(x).mean((2, 3))
        return self.head(F.relu(self.left(x)) + F.relu(self.right(x)))


class BareParameters(nn.Module):
    """Layer scale, a positional bias over space, a bare matrix, and a buffer of channel means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.position = nn.Parameter(torch.randn(1, 1, 8, 8))
        self.matrix = nn.Parameter(torch.randn(6, 10))
        self.head = nn.Linear(10, 4)
        self.register_buffer("center", torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x) * self.scale - self.center) + self.position
        return self.head(F.gelu(self.next(x).mean((2, 3)) @ self.matrix))


class Tokens(nn.Module):
    """Linear layers over tokens, a gated unit, an embedding added along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Linear(12, 16), nn.Parameter(torch.randn(1, 16, 16))
        self.gated, self.out, self.head = nn.Linear(16, 24), nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x[:, :, :8, :8], 2).flatten(2).transpose(1, 2)
        x = self.patch(x) + self.position
        x = x + self.out(F.glu(self.gated(x), -1))
        return self.head(x.mean(1))


class Transposing(nn.Module):
    """Layers that store their weight the other way round and add the bias in one operator (GPT-2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(12, 10)), nn.Parameter(torch.randn(10))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x[:, :, :8, :8], 2).flatten(2).transpose(1, 2)
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)
        return self.head(F.gelu(y).mean(1))


class UnknownOperator(nn.Module):
    """A Fourier transform over channels has no rule: what it touches stays, the rest may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return classify(torch.fft.fft(self.b(self.a(x)), dim=1).abs(), self.head)


class Conv1d(nn.Module):
    """Dilated one-dimensional convolutions with a global residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3, padding=2, dilation=2), nn.Conv1d(8, 3, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        return x + self.b(F.relu(self.a(x)))


AWKWARD: tuple[type[nn.Module], ...] = (
    Plain, Residual, ConstantPad, Concat, ChunkCat, UnequalSplit, Shuffle, Grouped, Inverted, SpatialGate, Transposed,
    Norms, Flatten, Shared, BareParameters, Tokens, Transposing, UnknownOperator, Conv1d,
)  # fmt: skip

PAPERS = (
    "resnet20", "resnet20-b", "resnet32", "resnet44", "resnet56", "resnet110", "preresnet29", "wrn28-8", "vgg16-bn",
    "vgg19-bn", "densenet40", "mobilenet-tiny", "digits-resnet",
)  # fmt: skip


def make(case: type[nn.Module] | Callable[[], nn.Module]) -> nn.Module:
    """Build a case with lively BatchNorm statistics, in float64 and evaluation mode."""
    torch.manual_seed(0)
    return lively(case()).double().eval()


def lively(model: nn.Module) -> nn.Module:
    """Give normalisation layers statistics and affine terms that a mistake would show in."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def paper_model(name: str) -> tuple[nn.Module, Tensor]:
    """Build a network of the papers in float64, with an input."""
    channels, size = (1, 16) if name.startswith("digits") else (3, 32)
    return lively(build_model(name, num_classes=10, in_channels=channels)).double().eval(), image(channels, size, 1)
