"""Curvature of the loss: per-unit traces of the Hessian, exact or estimated, with error bars."""

from hessprune.curvature.blocks import TraceOptions, block_traces
from hessprune.curvature.folding import Folded, fold_batchnorm
from hessprune.curvature.results import ParamSlice, Slices, TraceResult
from hessprune.curvature.risk import LossFn, logit_factor, mean_loss

__all__ = [
    "Folded",
    "LossFn",
    "ParamSlice",
    "Slices",
    "TraceOptions",
    "TraceResult",
    "block_traces",
    "fold_batchnorm",
    "logit_factor",
    "mean_loss",
]
