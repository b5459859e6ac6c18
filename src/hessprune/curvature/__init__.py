"""Curvature of the loss: Hessian traces of units with error bars, elimination of units, interactions of gates."""

from hessprune.curvature.blocks import block_traces
from hessprune.curvature.factoring import logit_factor
from hessprune.curvature.options import TraceOptions
from hessprune.curvature.precision import has_bf16
from hessprune.curvature.results import ParamSlice, Slices, TraceResult
from hessprune.curvature.stopping import Decision, Until, lowest
from hessprune.foundation.losses import LossFn
from hessprune.layers.folding import Folded, fold_batchnorm

__all__ = [
    "Decision",
    "Folded",
    "LossFn",
    "ParamSlice",
    "Slices",
    "TraceOptions",
    "TraceResult",
    "Until",
    "block_traces",
    "fold_batchnorm",
    "has_bf16",
    "logit_factor",
    "lowest",
]
