"""Networks with unusual layouts: other axes, grids, groups, regions of the graph under another mode."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classify, conv_bn


class ManyNorms(nn.Module):
    """GroupNorm after a concatenation; BatchNorm of vectors and of sequences; a norm shared by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.group = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(6, 12)
        self.left, self.right, self.shared = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8)
        self.sequence, self.line = nn.Conv1d(8, 10, 3), nn.BatchNorm1d(10)
        self.vector, self.hidden, self.head = nn.BatchNorm1d(7), nn.Linear(10, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(torch.cat([self.a(x), self.b(x)], 1)))
        x = F.relu(self.shared(self.left(x))) + self.shared(self.right(x))
        x = F.relu(self.line(self.sequence(x.flatten(2)))).amax(2)
        return self.head(F.relu(self.vector(self.hidden(x))))


class ManyGroupsUp(nn.Module):
    """Depthwise and grouped transposed convolutions, unpooling, dilation, resizing to a given size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = conv_bn(3, 8), nn.ConvTranspose2d(8, 16, 2, stride=2, groups=8)
        self.grouped = nn.ConvTranspose2d(16, 8, 3, padding=1, groups=8)
        self.mid, self.out = nn.Conv2d(8, 6, 3, padding=2, dilation=2), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.depthwise(self.stem(x)))))
        x, places = F.max_pool2d(x, 2, return_indices=True)
        x = F.max_unpool2d(x, places, 2)
        return F.interpolate(self.out(F.relu(self.mid(x))), size=(5, 7), mode="bilinear", align_corners=False)


class Patches(nn.Module):
    """Unfold and fold: a channel owns its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.last = conv_bn(3, 4), nn.Linear(16, 16), nn.Conv2d(4, 5, 1)
        self.back, self.head = nn.Conv2d(3, 24, 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        cells = F.unfold(self.stem(x), 2, stride=2)
        y = F.fold(F.relu(self.mix(cells.transpose(1, 2))).transpose(1, 2), x.shape[2:], 2, stride=2)
        return classify(F.relu(self.last(y)), self.head) + F.fold(
            self.back(x[:, :, ::2, ::2]).flatten(2), x.shape[2:], 2, stride=2
        ).mean((1, 2, 3), keepdim=True).flatten(1)


class Coordinates(nn.Module):
    """CoordConv, and sampling at predicted places: coordinates are no units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.coord, self.flow = conv_bn(3, 6), conv_bn(8, 7), nn.Conv2d(7, 2, 1)
        self.last, self.head = conv_bn(7, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij"))
        x = self.coord(torch.cat([x, grid.to(x).expand(n, -1, -1, -1)], 1))
        places = torch.tanh(self.flow(x)).permute(0, 2, 3, 1)
        return classify(self.last(F.grid_sample(x, places, align_corners=False)), self.head)


class OtherAxes(nn.Module):
    """Layers over space: mixing positions, gating by another axis, sliding over channels (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens, self.scale = conv_bn(3, 8), nn.Linear(64, 64), nn.Parameter(torch.rand(8))
        self.columns, self.slide = nn.Conv2d(8, 8, 1), nn.Conv1d(1, 1, 3, padding=1)
        self.next, self.last, self.head = conv_bn(8, 6), conv_bn(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.tokens(x.flatten(2)).view_as(x) * self.scale
        x = self.columns(x.transpose(1, 3)).transpose(1, 3)
        x = self.next(x)
        gate = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return classify(self.last(x * gate.transpose(1, 2).unsqueeze(-1)), self.head)


class Regions(nn.Module):
    """Dropout, stochastic depth, autocast and no_grad regions, in-place writes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.last = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 6)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        keep = x.new_empty((x.shape[0], 1, 1, 1)).fill_(1.0)
        x = x + self.inner(x).mul_(keep)
        with torch.autocast("cpu", enabled=False):
            y = self.last(x).clone()
        z = torch.zeros_like(y)
        z[:, :, 1:] = y[:, :, :-1]
        y += z
        return self.head(self.drop(y.amax((2, 3))))


class Extremes(nn.Module):
    """Maxima over space with their places, the best k positions, gathered: positions are free, channels stay apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next, self.score = conv_bn(3, 8), conv_bn(8, 6), nn.Conv2d(6, 1, 1)
        self.hidden, self.head = nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(self.stem(x))
        best = self.score(x).flatten(1).topk(5, dim=1).indices
        x = x.flatten(2).gather(2, best.unsqueeze(1).expand(-1, x.shape[1], -1))
        return self.head(F.relu(self.hidden(torch.max(x, 2)[0] + torch.cummax(x, 2).values.mean(2))))


class TwoWays(nn.Module):
    """One matrix as a weight and element by element; a bilinear form; a parameter that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.pair, self.hidden, self.head = nn.Bilinear(5, 5, 6), nn.Linear(6, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.a(x.mean((2, 3))))
        x = F.relu(self.b(x)) + (x.unsqueeze(1) * self.b.weight.exp()).mean(2)
        x = F.relu(self.c(x))
        return self.head(F.relu(self.hidden(self.pair(x, x)))), self.pair.bias.detach()


class States(nn.Module):
    """A state for each channel that starts at zero; its other axis is that of parts of unequal size."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.parts, self.head = nn.Linear(3, 8), nn.Linear(8, 3 + 3 + 2), nn.Linear(8, 4)
        self.steps, self.decay = nn.Linear(2, 8), nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.into(x.flatten(2).transpose(1, 2)[:, :5]))
        write, read, step = self.parts(x).split([3, 3, 2], dim=-1)
        step = F.softplus(self.steps(step))[..., None]
        keep, add = (step * -self.decay.exp()).exp(), step * write.unsqueeze(-2) * x[..., None]
        state, read_out = x.new_zeros(add[:, 0].shape), []
        for time in range(5):
            state = keep[:, time] * state + add[:, time]
            read_out.append((state @ read[:, time, :, None]).squeeze(-1))
        return self.head(torch.stack(read_out, 1).mean(1))


class Routed(nn.Module):
    """Rows in an order that is computed, and back; channels picked by a computed number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 6)
        self.third, self.head = nn.Linear(6, 5), nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x.flatten(2).transpose(1, 2)))
        order = x.sum((0, 2)).argsort()
        x = F.silu(self.second(x[:, order]))[:, order.argsort()]
        x = self.third(x.mean(1))
        return self.head(x[torch.arange(len(x)), x.argmax(1)][:, None])


LAYOUTS: tuple[type[nn.Module], ...] = (
    ManyNorms, ManyGroupsUp, Patches, Coordinates, OtherAxes, Regions, Extremes, TwoWays,
    States, Routed,
)  # fmt: skip
