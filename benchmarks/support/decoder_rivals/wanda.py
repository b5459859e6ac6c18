"""Wanda-sp (An et al. 2024, after Sun et al. 2024, arXiv 2306.11695): weights times norms of inputs.

The score of an input of a reader is `mean_i |W_ij| ‖x_j‖`, that of a head the sum over its inputs. Each layer loses the
same share. Weights stay as they are.
"""

import torch
from torch import Tensor, nn

from support.decoder_rivals.setting import Setting, cut, least, uniform


def scores(given: Setting) -> dict[str, Tensor]:
    """Return weight times input norm of each unit."""
    found = {}
    for s in given.sublayers:
        sums = given.tokens.sums[s.reader]
        norm = (sums.xx.diagonal() / sums.rows).sqrt()
        found[s.name] = given.by_unit(s, given.weight(s).double().abs().mean(0) * norm)
    return found


@torch.no_grad()
def wanda_sp(given: Setting) -> nn.Module:
    """Prune each layer by weight times input norm."""
    return cut(given, least(given, scores(given), uniform(given)))
