"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627), mixed parameters: `Σ |w g − ½ w² E g²|` over all weights of a unit.

`g` is the mean gradient of the loss on next words over the calibration sequences, `E g²` the mean of its square, which
stands for the diagonal of the Hessian. The first four blocks and the last two stay, all others lose the same share. The
training with LoRA that the authors let follow is left out, as for every rival.
"""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, Sublayer, cut, least, uniform

FIRST, LAST = 4, 2
"""Blocks that stay."""


def scores(given: Setting) -> dict[str, Tensor]:
    """Return the change of the loss that each unit's weights stand for, one by one."""
    weights, found = dict(given.model.named_parameters()), {}
    for s in given.sublayers:
        found[s.name] = torch.zeros(s.units, dtype=torch.float64)
        for piece in s.group.slices:
            if piece.param not in given.tokens.gradients:
                continue
            weight = weights[piece.param].detach()
            gradient, square = given.tokens.gradients[piece.param]
            change = (weight * gradient - weight.square() * square / 2).abs().double()
            by_index = change.sum(1 - piece.dim)
            found[s.name] += by_index[torch.as_tensor(piece.index)].sum(1)
    return found


def inner(given: Setting) -> list[Sublayer]:
    """Return the sub-layers of blocks that may lose units."""
    blocks = list(dict.fromkeys(_block(s) for s in given.sublayers))
    if len(blocks) <= FIRST + LAST:
        return list(given.sublayers)
    chosen = blocks[FIRST:-LAST]
    return [s for s in given.sublayers if _block(s) in chosen]


def _block(sublayer: Sublayer) -> str:
    prefix, _, rest = sublayer.reader.partition(".layers.")
    return f"{prefix}.{rest.split('.')[0]}"


def llm_pruner(given: Setting) -> nn.Module:
    """Prune by the Taylor expansion of each weight."""
    return cut(given, least(given, scores(given), uniform(given, inner(given))))
