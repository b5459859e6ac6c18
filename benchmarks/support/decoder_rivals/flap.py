"""FLAP (An et al. 2024, arXiv 2312.11983): fluctuation-based adaptive structured pruning.

The score of an input of a reader is `Var(x_j) ‖W_:j‖²`. Scores are standardised over the inputs of each reader, then
averaged over the inputs of a head; the units of least score go, over all layers. The mean of what goes is added to the
reader's output: `b += W mean(x)`.
"""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, cheapest, cut


def scores(given: Setting) -> dict[str, Tensor]:
    """Return the standardised fluctuation of each unit."""
    found = {}
    for s in given.sublayers:
        score = given.tokens.sums[s.reader].variance * given.weight(s).double().square().sum(0)
        found[s.name] = given.by_unit(s, (score - score.mean()) / score.std()) / s.width
    return found


@torch.no_grad()
def flap(given: Setting) -> nn.Module:
    """Prune by fluctuation, and add the means of what is gone."""
    kept = cheapest(given, scores(given))
    biases = {}
    for s in given.sublayers:
        lost = given.tokens.sums[s.reader].mean * ~s.spread(kept[s.name])
        biases[s.reader] = given.weight(s).double() @ lost
    return cut(given, kept, biases=biases)
