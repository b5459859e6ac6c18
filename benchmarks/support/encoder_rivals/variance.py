"""Neurons by variance: VBP (2025), DVBP with OB²C (arXiv 2608.17657), and CORP (arXiv 2602.05243).

VBP: the neurons whose activation varies least go, over all layers; their means go into the bias.
DVBP: the score is `½ diag C + ½ diag C_MP`, where `C` is the covariance of activations and `C_MP` its part above the
Marchenko–Pastur edge for as many observations as samples. OB²C: the optimal brain compression of the kept columns under
the centred covariance, `W_S −= W_P (C⁻¹_PP)⁻¹ C⁻¹_PS`, then the bias takes the mean of what is missing.
CORP: the same share of each layer, least `E‖x_j‖² ‖w_j‖²` first; a ridge predicts the pruned from the kept,
`x_P ≈ B x_S + c`, and the reader takes `W_S += W_P B`, `b += W_P c`.
"""

import torch
from torch import Tensor, nn

from support.encoder_rivals.kwon import Weights
from support.encoder_rivals.least_squares import spread
from support.encoder_rivals.osscar import uniform
from support.encoder_rivals.setting import Kept, Setting, Sublayer, cheapest, cut
from support.encoder_rivals.stream import Stream

MIXTURE, DAMPING = 0.5, 1e-4


def spiked(covariance: Tensor, samples: int) -> Tensor:
    """Return the diagonal of the part of a covariance above the Marchenko–Pastur edge."""
    values, vectors = torch.linalg.eigh(covariance)
    edge = values.median() * (1 + (len(values) / samples) ** 0.5) ** 2
    return (vectors.square() * values.where(values > edge, 0.0)).sum(1)


def spreads(setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and covariance of the inputs of all readers."""
    stream = Stream(setting)
    return {s.name: spread(stream, s) for s in setting.sublayers}


def denoised(setting: Setting) -> dict[str, Tensor]:
    """Return the scores of DVBP."""
    return {
        s.name: by_unit(s, (1 - MIXTURE) * covariance.diagonal() + MIXTURE * spiked(covariance, setting.samples))
        for s in setting.sublayers
        for _, covariance in [setting.once(spreads)[s.name]]
    }


def by_unit(sublayer: Sublayer, variance: Tensor) -> Tensor:
    """Return the variance of each unit, summed over its inputs, by what it costs, so that heads and neurons compare."""
    return variance.view(sublayer.units, -1).sum(1) / sublayer.cost


def bayes(covariance: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """Return the weight `(O, K)` on the kept inputs that changes the output least, by centred covariance."""
    damping = DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    inside = covariance + damping
    predicted = torch.linalg.solve(inside[kept][:, kept], inside[kept][:, ~kept])  # C_SS⁻¹ C_SP
    new = torch.zeros_like(weight)
    new[:, kept] = weight[:, kept] + weight[:, ~kept] @ predicted.T
    return new


def pruned(setting: Setting, kept: Kept, stats: dict[str, tuple[Tensor, Tensor]], *, refit: bool) -> nn.Module:
    """Return the model with means in the biases, and with refitted weights if asked for."""
    weights: Weights = {}
    for s in setting.sublayers:
        (mean, covariance), reader, stays = stats[s.name], setting.reader(s), s.spread(kept[s.name])
        old = reader.weight.data.double()
        new = bayes(covariance, old, stays) if refit else old * stays
        weights[s.reader] = (new.float(), (reader.bias.data.double() + (old - new) @ mean).float())
    return cut(setting, kept, weights)


@torch.no_grad()
def vbp(setting: Setting) -> nn.Module:
    """Prune by variance, and absorb means."""
    stats = setting.once(spreads)
    kept = cheapest(setting, {s.name: by_unit(s, stats[s.name][1].diagonal()) for s in setting.sublayers})
    return pruned(setting, kept, stats, refit=False)


@torch.no_grad()
def dvbp(setting: Setting) -> nn.Module:
    """Prune by denoised variance, and compress."""
    kept = cheapest(setting, setting.once(denoised))
    return pruned(setting, kept, setting.once(spreads), refit=True)


@torch.no_grad()
def corp(setting: Setting) -> nn.Module:
    """Prune each layer by the same share of energy, and let the kept predict the rest."""
    stats = setting.once(spreads)
    kept, gone = {}, uniform(setting)
    for s in setting.sublayers:
        mean, covariance = stats[s.name]
        energy = (covariance.diagonal() + mean.square()) * setting.reader(s).weight.double().square().sum(0)
        kept[s.name] = torch.ones(s.units, dtype=torch.bool)
        kept[s.name][energy.view(s.units, -1).sum(1).argsort()[: gone[s.name]]] = False
    return pruned(setting, kept, stats, refit=True)
