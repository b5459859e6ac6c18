"""Saliency: the estimated loss increase of removing each unit, one file per method."""

from hessprune.methods.hessian_trace import hessian_trace
from hessprune.methods.scores import Settings
from hessprune.methods.table import METHODS, saliency
from hessprune.methods.values import Saliency

__all__ = ["METHODS", "Saliency", "Settings", "hessian_trace", "saliency"]
