"""hessprune: smaller, faster neural networks from second-order information."""

__version__ = "0.1.0"
