"""Michel, Levy & Neubig 2019, "Are sixteen heads really better than one?": sensitivity to the gates of heads.

`I_h = E_x |∂L(x)/∂ξ_h|` with the loss on labels, divided by the norm over the heads of a layer; the least go.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from support.encoder_rivals.setting import Setting, cheapest, cut, gate_gradients


def scores(setting: Setting) -> dict[str, Tensor]:
    """Return the normalised sensitivity of each unit."""
    whole = {s.name: Tensor([True] * s.units).bool() for s in setting.sublayers}
    total: dict[str, Tensor] = {}
    for (found,) in gate_gradients(setting, whole, lambda z, _, y: [F.cross_entropy(z, y, reduction="sum")]):
        for name, gradient in found.items():
            total[name] = total.get(name, 0.0) + gradient.abs().sum(0)
    return {name: value / value.norm() for name, value in total.items()}


def michel(setting: Setting) -> nn.Module:
    """Prune by sensitivity."""
    return cut(setting, cheapest(setting, setting.once(scores)))
