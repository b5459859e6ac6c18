"""The arguments that inputs are for a forward."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from hessprune.foundation.wrappers import unwrapped


def as_given(model: nn.Module, inputs: Any) -> Any:
    """Return inputs as they are; in a tuple, a dict or a named tuple that is itself the argument of `forward(batch)`.

    Example:
        >>> as_given(nn.ReLU(), {"image": 1}), as_given(nn.ReLU(), {"input": 1})
        (({'image': 1},), {'input': 1})
    """
    return (inputs,) if argument_of(model, inputs) else inputs


def argument_of(model: nn.Module, inputs: Any) -> str:
    """Return the name of the argument that inputs are as a whole; an empty string where their values are arguments.

    A dict is one where no argument is called as a key, a named tuple where it has more values than the forward has
    arguments. The forward requires that argument alone, or has no other.
    """
    parameters, named = _parameters_of(model), argument_names(model)
    kinds = {each.kind for each in parameters}
    if len(required_inputs(model)) != 1 and not (len(named) == 1 and inspect.Parameter.VAR_KEYWORD not in kinds):
        return ""
    if isinstance(inputs, Mapping):
        is_whole = not set(inputs) & {each.name for each in parameters}
    else:
        takes_more = inspect.Parameter.VAR_POSITIONAL in kinds
        is_whole = hasattr(inputs, "_fields") and len(named) < len(inputs) and not takes_more
    return named[0] if is_whole else ""


def argument_names(model: Any) -> tuple[str, ...]:
    """Return the names of what a model's forward takes in a row, before anything of a number left open."""
    return tuple(each.name for each in _parameters_of(model) if each.kind in _IN_A_ROW)


def required_inputs(model: Any) -> tuple[str, ...]:
    """Return the names of the arguments that a model's forward cannot do without.

    Example:
        >>> required_inputs(nn.DataParallel(nn.Bilinear(1, 2, 3)))
        ('input1', 'input2')
    """
    parameters = (each for each in _parameters_of(model) if each.kind in _IN_A_ROW)
    return tuple(each.name for each in parameters if each.default is inspect.Parameter.empty)


_IN_A_ROW = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters_of(model: Any) -> list[inspect.Parameter]:
    """Return the parameters of a model's forward, of the model inside of all wrappers."""
    try:
        return [*inspect.signature(unwrapped(model).forward).parameters.values()]
    except (AttributeError, TypeError, ValueError):
        return []
