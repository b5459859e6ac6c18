"""The papers' networks, any factory by name, and weights from other people's checkpoints."""

from hessprune.models.registry import available_models, build_model
from hessprune.models.weights import load_weights

__all__ = ["available_models", "build_model", "load_weights"]
