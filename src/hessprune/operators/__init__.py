"""One rule per family of operators; importing this package fills the table in `registry`."""

from hessprune.operators import attention, convolution, elementwise, linear, norm, reduction, shape

__all__ = ["attention", "convolution", "elementwise", "linear", "norm", "reduction", "shape"]
