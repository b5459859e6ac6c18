"""OSSCAR (Meng et al. 2024) on the elimination of ZipLM (Kurtić et al. 2023): layer by layer, the same share of each.

For the inputs `X` of a reader in the pruned model, `H = XᵀX`, `G = XᵀX W₀`, the objective of a support is
`−tr WᵀG + ½ tr WᵀHW` at its own least squares. Backward: the unit goes whose removal costs least,
`½ tr W_Sᵀ (H⁻¹_SS)⁻¹ W_S`; the others are refitted. Then a local search: the cheapest units swap places with those
outside that gain most, `½ tr gᵀC⁻¹g`, as long as the objective falls. Constants are refitted beside, as bias.
"""

import torch
from torch import Tensor, nn

from support.encoder_rivals.kwon import Weights
from support.encoder_rivals.least_squares import spread
from support.encoder_rivals.setting import Kept, Setting, Sublayer, cut, reweighted
from support.encoder_rivals.stream import Stream

DAMPING, SWAPS, ROUNDS = 1e-2, 0.05, 10


def uniform(setting: Setting) -> dict[str, int]:
    """Return how many units leave each sub-layer: as near to the same share as whole units allow."""
    share = setting.excess / sum(s.units * s.cost for s in setting.sublayers)
    gone = {s.name: min(int(share * s.units), s.units - 1) for s in setting.sublayers}
    left = setting.excess - sum(gone[s.name] * s.cost for s in setting.sublayers)
    for s in sorted(setting.sublayers, key=lambda s: s.units):  # few units are rounded worst
        while left > 1e-6 and gone[s.name] < min(s.units - 1, share * s.units + 1):
            gone[s.name], left = gone[s.name] + 1, left - s.cost
    return gone


class Layer:
    """One reader as a quadratic problem: `H` `(K, K)`, `G` `(K, O)`, units of `m` inputs each."""

    def __init__(self, hessian: Tensor, weight: Tensor, width: int) -> None:
        self.H = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
        self.G, self.width = self.H @ weight, width
        self.units = len(hessian) // width

    def columns(self, units: Tensor) -> Tensor:
        """Return the inputs of some units."""
        return (units[:, None] * self.width + torch.arange(self.width)).flatten()

    def solve(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights on a support, and the inverse of `H` there."""
        index = self.columns(units)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.H[index[:, None], index]))
        return inverse @ self.G[index], inverse

    def losses(self, weight: Tensor, inverse: Tensor) -> Tensor:
        """Return what the removal of each unit of a support costs."""
        number, m = len(weight) // self.width, self.width
        blocks = inverse.view(number, m, number, m).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        rows = weight.view(number, m, -1)
        return (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)) / 2

    def gains(self, kept: Tensor, gone: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
        """Return what the return of each unit outside saves."""
        inside, outside = self.columns(kept), self.columns(gone)
        cross = self.H[inside[:, None], outside]
        left = (self.G[outside] - cross.T @ weight).view(len(gone), self.width, -1)
        product = (inverse @ cross).view(len(inside), len(gone), self.width)
        own = torch.stack([self.H[b[:, None], b] for b in outside.view(len(gone), -1)])
        schur = own - torch.einsum("kum,kun->umn", cross.view(len(inside), len(gone), self.width), product)
        return (left * torch.linalg.solve(schur, left)).sum((1, 2)) / 2

    def value(self, units: Tensor) -> float:
        """Return the objective at the least squares of a support."""
        weight, _ = self.solve(units)
        return -float((weight * self.G[self.columns(units)]).sum()) / 2


def eliminate(layer: Layer, number: int) -> Tensor:
    """Return the units that stay after so many have left, a few of the cheapest at a time, in sorted order."""
    kept = torch.arange(layer.units)
    weight, inverse = layer.solve(kept)
    while (gone := layer.units - len(kept)) < number:
        some = min(number - gone, max(1, len(kept) // 50))
        order = layer.losses(weight, inverse).argsort()
        stays, leaves = order[some:].sort().values, order[:some]
        left, out = layer.columns(stays), layer.columns(leaves)
        share = torch.linalg.solve(inverse[out[:, None], out], inverse[out][:, left]).T
        weight, inverse = (
            weight[left] - share @ weight[out],
            inverse[left[:, None], left] - share @ inverse[out][:, left],
        )
        kept = kept[stays]
    return kept


def swapped(layer: Layer, kept: Tensor) -> Tensor:
    """Return a support after local search."""
    every, value = torch.arange(layer.units), layer.value(kept)
    size = max(1, round(SWAPS * min(len(kept), layer.units - len(kept))))
    for _ in range(ROUNDS):
        if len(kept) in (layer.units, 1) or size < 1:
            break
        weight, inverse = layer.solve(kept)
        less = kept[layer.losses(weight, inverse).argsort()[size:].sort().values]
        if not len(less):
            break
        weight, inverse = layer.solve(less)
        outside = every[~torch.isin(every, less)]
        best = outside[layer.gains(less, outside, weight, inverse).argsort(descending=True)[:size]]
        tried = torch.cat([less, best]).sort().values
        if (now := layer.value(tried)) >= value - 1e-9 * abs(value):
            size //= 2
            continue
        kept, value = tried, now
    return kept


def prune_layer(stream: Stream, sublayer: Sublayer, kept: Kept, number: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return which units of a sub-layer stay, and the reader's weight and bias."""
    reader = stream.setting.reader(sublayer)
    mean, covariance = spread(stream, sublayer, kept)
    old = reader.weight.double().T
    layer = Layer(covariance, old, sublayer.width)
    stays = swapped(layer, eliminate(layer, number))
    new, (weight, _) = torch.zeros_like(old), layer.solve(stays)
    new[layer.columns(stays)] = weight
    mask = torch.zeros(sublayer.units, dtype=torch.bool)
    mask[stays] = True
    return mask, (new.T.float(), (reader.bias.double() + mean @ (old - new)).float())


def osscar(setting: Setting) -> nn.Module:
    """Prune each layer by the same share, in forward order."""
    kept: Kept = {s.name: torch.ones(s.units, dtype=torch.bool) for s in setting.sublayers}
    weights: Weights = {}
    stream = Stream(setting)
    with torch.no_grad():
        for sublayer in setting.sublayers:
            number = uniform(setting)[sublayer.name]
            if number:
                with reweighted(setting, weights):
                    kept[sublayer.name], weights[sublayer.reader] = prune_layer(stream, sublayer, kept, number)
    return cut(setting, kept, weights)
