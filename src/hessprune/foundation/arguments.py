"""The arguments that inputs are for a forward."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def as_given(model: nn.Module, inputs: Any) -> Any:
    """Return inputs as they are; in a tuple, a dict that is itself the argument of a forward, as in `forward(batch)`.

    Such a forward requires one argument, and takes none that is called as a key.

    Example:
        >>> as_given(nn.ReLU(), {"image": 1}), as_given(nn.ReLU(), {"input": 1})
        (({'image': 1},), {'input': 1})
    """
    return (inputs,) if argument_of(model, inputs) else inputs


def argument_of(model: nn.Module, inputs: Any) -> str:
    """Return the name of the argument that a whole dict is; an empty string where its values are arguments."""
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters  # torch.compile's
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p.name for p in parameters.values() if p.kind in kinds and p.default is inspect.Parameter.empty]
    is_open = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    is_whole = isinstance(inputs, Mapping) and len(required) == 1 and not is_open and not set(inputs) & set(parameters)
    return required[0] if is_whole else ""
