"""The papers' networks, any factory by name, and weights from other people's checkpoints."""

from hessprune.lab.models.registry import available_models, build_model
from hessprune.lab.models.weights import load_weights

__all__ = ["available_models", "build_model", "load_weights"]
