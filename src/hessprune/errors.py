"""Every error a user can meet: each also subclasses the builtin they would expect.

One message template throughout: *what* must be *how*, what was found, in which module, and what to do about it.
"""


class HessPruneError(Exception):
    """Base class: `except HessPruneError` catches everything this library raises on purpose."""


class ArgumentError(HessPruneError, ValueError):
    """An argument is outside its documented range."""


class BudgetError(ArgumentError):
    """A budget is malformed, or cannot be reached with the groups at hand."""


class DataError(HessPruneError, ValueError):
    """The data are empty, of the wrong shape, out of range, or cannot be read twice."""


class UnsupportedModelError(HessPruneError, ValueError):
    """The model cannot be captured, or holds nothing that can be pruned."""


class VerificationError(HessPruneError, RuntimeError):
    """A pruned model does not compute what the masked dense model computes."""


class NumericalError(HessPruneError, ArithmeticError):
    """Weights, loss or curvature are not finite."""


class CheckpointError(HessPruneError, ValueError):
    """A checkpoint is missing, truncated, or does not fit the model."""


class RecipeError(HessPruneError, ValueError):
    """A recipe has an unknown key or an impossible value."""


class OutputError(HessPruneError, OSError):
    """Results cannot be written: the folder is read-only or the disk is full."""


class MissingDependencyError(HessPruneError, ImportError):
    """An optional dependency is needed; the message holds the pip command."""
