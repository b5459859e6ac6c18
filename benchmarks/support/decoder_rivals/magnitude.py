"""Magnitude: the norm of all weights of a unit, the same share of each layer."""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, cut, least, uniform


def scores(given: Setting) -> dict[str, Tensor]:
    """Return the squared norm of each unit's weights."""
    weights, found = dict(given.model.named_parameters()), {}
    for s in given.sublayers:
        found[s.name] = torch.zeros(s.units, dtype=torch.float64)
        for piece in s.group.slices:
            square = weights[piece.param].detach().double().square()
            by_index = square.sum([dim for dim in range(square.dim()) if dim != piece.dim])
            found[s.name] += by_index[torch.as_tensor(piece.index)].sum(1)
    return found


@torch.no_grad()
def magnitude(given: Setting) -> nn.Module:
    """Prune each layer by weights."""
    return cut(given, least(given, scores(given), uniform(given)))
