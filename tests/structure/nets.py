"""More awkward networks: attention over channels and space, computed weights, branches, layouts, sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classify, conv_bn


class ChannelAndSpaceAttention(nn.Module):
    """CBAM: a bottleneck gate per channel, then a gate per position from the mean and maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Linear(6, 4)
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.space = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)) + self.gate(F.adaptive_max_pool2d(x, 1)))
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        return classify(self.last(x * torch.sigmoid(self.space(pooled))), self.head)


class SelectiveKernel(nn.Module):
    """SKNet: branches are stacked, summed, and weighted by a softmax over branches for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv_bn(3, 8), conv_bn(8, 10, 3), conv_bn(8, 10, 5)
        self.squeeze, self.excite = conv_bn(10, 5, 1), nn.Conv2d(5, 20, 1)
        self.last, self.head = conv_bn(10, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.stack([self.left(x), self.right(x)], 1)
        weights = self.excite(self.squeeze(x.sum(1).mean((2, 3), keepdim=True)))
        weights = weights.view(x.shape[0], 2, -1, 1, 1).softmax(1)
        return classify(self.last((x * weights).sum(1)), self.head)


class SplitAttention(nn.Module):
    """ResNeSt: one grouped convolution makes all branches, which a view takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = conv_bn(3, 8), conv_bn(8, 16, groups=2)
        self.squeeze, self.excite = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 16, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.split(self.stem(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w)
        weights = self.excite(F.relu(self.squeeze(x.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(n, 1, 2, -1).transpose(1, 2).softmax(1).reshape(n, -1, 1, 1)
        return classify((x * weights.reshape(n, 2, c // 2, 1, 1)).sum(1), self.head)


class SubPixel(nn.Module):
    """Super-resolution: nn.PixelShuffle, its inverse, and depth-to-space written with views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.mid = conv_bn(3, 8), nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(6, 20, 3, padding=1)
        self.narrow, self.out = nn.Conv2d(20, 8, 1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mid(F.pixel_shuffle(self.up(self.stem(x)), 2)))
        n, c, h, w = x.shape
        x = x.view(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)
        return self.out(self.narrow(F.pixel_unshuffle(x, 2)))


class ComputedWeights(nn.Module):
    """Standardised and normalised weights couple their inputs; a scaled or transposed weight is still a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scaled = conv_bn(3, 8), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.standard = nn.Conv2d(6, 8, 3, padding=1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 7, 1))
        self.plain, self.matrix = nn.Conv2d(7, 9, 1), nn.Parameter(torch.randn(5, 9))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(self.stem(x), self.scaled.weight * 0.5, padding=1))
        weight = self.standard.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
        x = F.relu(self.normed(F.relu(F.conv2d(x, weight, self.standard.bias, padding=1))))
        return self.head(F.relu(F.relu(self.plain(x)).mean((2, 3)) @ self.matrix.t()))


class Recurrent(nn.Module):
    """An LSTM stays, by name; other layers may go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = conv_bn(3, 8), nn.Linear(8, 6)
        self.lstm, self.hidden, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.conv(x)[:, :, ::4, ::4].flatten(2).transpose(1, 2))
        return self.head(F.relu(self.hidden(self.lstm(x)[0][:, -1])))


class MadeInForward(nn.Module):
    """Masks over space leave channels free; an encoding over channels has a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(8, 7), conv_bn(7, 6), nn.Linear(6, 4)
        self.register_buffer("keep", torch.rand(1, 1, 8, 8) > 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch.no_grad():
            mask = torch.ones(x.shape[2:], device=x.device, dtype=x.dtype).tril()
        row = torch.arange(x.shape[-1], device=x.device)
        x = self.b(x * mask).masked_fill(row > 5, 0.5) * self.keep
        return classify(self.c(x) + torch.arange(6, device=x.device).view(1, 6, 1, 1), self.head)


class Mirrored(nn.Module):
    """Channels meet their mirror image; others are rolled, or looked up by a fixed permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(8, 6), conv_bn(6, 5), nn.Linear(5, 4)
        self.register_buffer("order", torch.tensor([2, 0, 1, 4, 3]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x + x.flip(1)).roll(1, 1)
        return classify(self.c(x)[:, self.order], self.head)


class Transformer(nn.Module):
    """A class token, positions, pre-norm attention written out, a feed-forward layer, a computed bias."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 36, bias=False), nn.Linear(12, 12)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.scores = nn.Parameter(torch.randn(3, 5, 5))
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.attend(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x[:, 0])

    def attend(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(n, t, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v, self.scores).transpose(1, 2).reshape(n, t, c))


class NonLocal(nn.Module):
    """Every position attends to every other: the two embeddings lose the same channels, the values their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.theta, self.phi = conv_bn(3, 8), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        self.value, self.out, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, _, h, w = x.shape
        scores = (self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2)).softmax(-1)
        y = torch.bmm(scores, self.value(x).flatten(2).transpose(1, 2))
        return classify(x + self.out(y.transpose(1, 2).reshape(n, -1, h, w)), self.head)


class Einsum(nn.Module):
    """Products in Einstein's notation: with a parameter on either side, and of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), nn.Linear(5, 4)
        self.mix, self.last = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(7, 5))
        self.query, self.key, self.value = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("oc,nchw->nohw", self.mix, self.stem(x)))
        scores = torch.einsum("ncij,nckl->nijkl", self.query(x), self.key(x)).flatten(3).softmax(-1)
        x = torch.einsum("nijk,nck->nijc", scores, self.value(x).flatten(2))
        return self.head(F.relu(torch.einsum("nijc,co->nijo", x, self.last)).mean((1, 2)))


class ManyOutputs(nn.Module):
    """A dict with features beside the logits: returned features keep their width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv_bn(3, 8), conv_bn(8, 7), conv_bn(7, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> dict[str, object]:
        features = self.b(self.a(x))
        return {"logits": classify(self.c(features), self.head), "features": [features]}


class Auxiliary(nn.Module):
    """An auxiliary head that only training runs (GoogLeNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), nn.Linear(6, 4)
        self.side, self.side_head = conv_bn(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        logits = classify(self.b(x), self.head)
        return (logits, classify(self.side(x), self.side_head)) if self.training else logits


class NormalisedMap(nn.Module):
    """A map over positions that a layer norm over its only channel passes: no unit is left in its labels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.score, self.norm = conv_bn(3, 8), nn.Conv2d(2, 1, 3, padding=1), nn.LayerNorm(1)
        self.slope, self.last, self.head = nn.PReLU(1), conv_bn(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scores = self.score(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        tokens = self.slope(self.norm(scores.flatten(2).transpose(1, 2)))
        return classify(self.last(x * tokens.transpose(1, 2).view(scores.shape)), self.head)


NETS: tuple[type[nn.Module], ...] = (
    ChannelAndSpaceAttention, SelectiveKernel, SplitAttention, SubPixel, ComputedWeights, Recurrent, MadeInForward,
    Mirrored, Transformer, NonLocal, Einsum, ManyOutputs, Auxiliary, NormalisedMap,
)  # fmt: skip
