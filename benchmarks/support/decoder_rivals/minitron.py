"""Minitron (Muralidharan et al. 2024, arXiv 2407.14679): sizes of activations, the same share of each layer.

A neuron's score is `√ Σ_n (mean_t |x_ntj|)²`, a head's the norm of the scores of its inputs of the reader. Months of
distillation follow at the authors'; here nothing does.
"""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, cut, least, uniform


def scores(given: Setting) -> dict[str, Tensor]:
    """Return the size of each unit's activations."""
    return {
        s.name: given.by_unit(s, given.tokens.sums[s.reader].bounds.square().sum(0)).sqrt() for s in given.sublayers
    }


@torch.no_grad()
def minitron(given: Setting) -> nn.Module:
    """Prune each layer by activations."""
    return cut(given, least(given, scores(given), uniform(given)))
