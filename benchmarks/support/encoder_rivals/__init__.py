"""Published ways to prune encoders without training, each from its formulas, on the sub-layers of `setting`."""

from collections.abc import Callable

from torch import nn

from support.encoder_rivals.kprune import kprune
from support.encoder_rivals.kwon import kwon
from support.encoder_rivals.michel import michel
from support.encoder_rivals.osscar import osscar
from support.encoder_rivals.setting import Setting, setting
from support.encoder_rivals.variance import corp, dvbp, vbp

RIVALS: dict[str, Callable[[Setting], nn.Module]] = {
    "michel": michel,
    "kwon": kwon,
    "k-prune": kprune,
    "osscar": osscar,
    "vbp": vbp,
    "dvbp+ob2c": dvbp,
    "corp": corp,
}

__all__ = ["RIVALS", "Setting", "setting"]
