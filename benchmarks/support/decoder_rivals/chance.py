"""Random: units at random, the same share of each layer."""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, cut, least, uniform


def scores(given: Setting) -> dict[str, Tensor]:
    """Return random numbers, by the setting's seed."""
    generator = torch.Generator().manual_seed(given.seed)
    return {s.name: torch.rand(s.units, generator=generator) for s in given.sublayers}


@torch.no_grad()
def random(given: Setting) -> nn.Module:
    """Prune each layer at random."""
    return cut(given, least(given, scores(given), uniform(given)))
