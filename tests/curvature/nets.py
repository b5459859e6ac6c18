"""Small networks, one for each way a weight can be used, and what to measure on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessprune.curvature import ParamSlice


class Residual(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(4)
        self.down = nn.Conv2d(4, 4, 1, stride=2)
        self.head = nn.Linear(4, 3)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn0(self.stem(x)))
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y = self.act(y + self.down(x))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1, dilation=1)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Linear maps over tokens, one with transposed bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.bare = nn.Parameter(torch.randn(5, 4) / 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 2, 4, 4)
        x = x.flatten(1)[:, :30].reshape(len(x), 10, 3)
        return self.head(F.relu(F.relu(self.first(x)) @ self.bare).mean(1))


class Views(nn.Module):
    """Every weight reaches its product through a view: turned, squeezed, on the left, by rows or by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Linear(3, 4)
        self.back = nn.Parameter(torch.randn(4, 5) / 2)
        self.depthwise = nn.Conv1d(5, 5, 3, groups=5, padding=1)
        self.left = nn.Parameter(torch.randn(6, 5) / 2)
        self.pointwise = nn.Conv2d(6, 4, 1)
        self.points = nn.Linear(4, 6)
        self.rows = nn.Linear(6, 5)
        self.columns = nn.Parameter(torch.randn(4, 5) / 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (N, 2, 4, 4)
        x = x.flatten(1)[:, :30].reshape(len(x), 10, 3)
        x = F.relu(x @ self.turned.weight.T + self.turned.bias)
        x = F.relu(F.linear(x, self.back.t())).mT
        kernels = self.depthwise.weight.squeeze(1)
        x = F.relu(F.conv1d(x, weight=kernels.unsqueeze(1), bias=self.depthwise.bias, padding=1, groups=5))
        x = F.relu(self.left @ x).mT
        x = F.relu(F.linear(x, self.pointwise.weight.flatten(1), self.pointwise.bias)).mT
        x = F.relu(F.conv1d(x, self.points.weight[:, :, None], self.points.bias)).mT
        (a, b), (c, d) = self.rows.weight.split([2, 3]), self.rows.bias.split([2, 3])
        x = torch.cat([F.relu(F.linear(x, a, c)), F.relu(F.linear(x, b, d))], -1)
        x = F.linear(x[..., :2], self.columns[:, :2]) + x[..., 2:] @ self.columns[:, 2:].T
        return self.head(F.relu(x).mean(1))


class Sequence1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding="same", dilation=2)
        self.depthwise = nn.Conv1d(4, 4, 3, groups=4, stride=2)
        self.volume = nn.Conv3d(1, 2, (2, 3, 1), padding=1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.depthwise(F.leaky_relu(self.conv(x.flatten(2)))))
        return self.head(F.relu(self.volume(x[:, None, :, :, None])).mean((2, 3, 4)))


class Twice(nn.Module):
    """One convolution called twice: not the Hessian, but the Gauss–Newton block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))


class Gated(nn.Module):
    """Squeeze-excite and a smooth activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.squeeze = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2))  # (N, 8, 4)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


class CrossAttention(nn.Module):
    """Queries of some inputs, keys and values of others; the packed projection is used by rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1, 2)).transpose(0, 1)  # (8, N, 4)
        x = x[:3] + self.attention(x[:3], x[3:], x[3:], need_weights=False)[0]
        return self.head(x.mean(0))


PIECEWISE = {
    "residual": Residual,
    "in-place": lambda: Residual(inplace=True),
    "transposed": Transposed,
    "tokens": Tokens,
    "sequence": Sequence1d,
}
SMOOTH = {"twice": Twice, "gated": Gated, "attention": Attention, "views": Views, "cross-attention": CrossAttention}


def build(factory, seed: int = 0) -> nn.Module:
    """Build a network with lively normalisation statistics, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    model = factory()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return model.double().eval()


def batches_of(sizes=(3, 2), seed: int = 1, classes: int = 3, shape=(2, 4, 4)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, *shape, generator=generator, dtype=torch.float64),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for n in sizes
    ]


def rows(model: nn.Module, name: str, dim: int) -> ParamSlice:
    """One unit for every index along `dim`."""
    return ParamSlice(param=name, dim=dim, index=torch.arange(model.get_parameter(name).shape[dim])[:, None])


def weights(model: nn.Module) -> list[str]:
    """Names of the weights of at least two axes."""
    return [name for name, value in model.named_parameters() if value.dim() >= 2]


def all_rows(model: nn.Module) -> dict[str, list[ParamSlice]]:
    """Every weight along its first two axes, each under a key of its own."""
    return {f"{name}:{dim}": [rows(model, name, dim)] for name in weights(model) for dim in (0, 1)}
