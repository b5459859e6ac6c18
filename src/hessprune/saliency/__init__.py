"""Saliency: the estimated loss increase of removing each unit, one file per method."""

from hessprune.saliency.hessian_trace import hessian_trace
from hessprune.saliency.implant_losses import implant_losses
from hessprune.saliency.methods import METHODS, saliency
from hessprune.saliency.scores import Settings
from hessprune.saliency.values import Saliency

__all__ = ["METHODS", "Saliency", "Settings", "hessian_trace", "implant_losses", "saliency"]
