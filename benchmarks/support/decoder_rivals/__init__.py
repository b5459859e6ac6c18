"""Published ways to prune decoders without training, each from its formulas, on the sub-layers of `setting`."""

from collections.abc import Callable

from torch import nn

from support.decoder_rivals.chance import random
from support.decoder_rivals.flap import flap
from support.decoder_rivals.llm_pruner import llm_pruner
from support.decoder_rivals.magnitude import magnitude
from support.decoder_rivals.minitron import minitron
from support.decoder_rivals.osscar import osscar
from support.decoder_rivals.setting import Setting, setting
from support.decoder_rivals.wanda import wanda_sp

RIVALS: dict[str, Callable[[Setting], nn.Module]] = {
    "flap": flap,
    "osscar": osscar,
    "wanda-sp": wanda_sp,
    "llm-pruner": llm_pruner,
    "minitron": minitron,
    "magnitude": magnitude,
    "random": random,
}

__all__ = ["RIVALS", "Setting", "setting"]
