"""The arguments that inputs are for a forward."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


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
    try:
        parameters = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters  # torch.compile's
    except (TypeError, ValueError):
        return ""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [each for each in parameters.values() if each.kind in kinds]
    required = [each for each in named if each.default is inspect.Parameter.empty]
    is_open = {each.kind for each in parameters.values()} & {inspect.Parameter.VAR_KEYWORD}
    if len(required) != 1 and not (len(named) == 1 and not is_open):
        return ""
    if isinstance(inputs, Mapping):
        is_whole = not set(inputs) & set(parameters)
    else:
        takes_more = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters.values())
        is_whole = hasattr(inputs, "_fields") and len(named) < len(inputs) and not takes_more
    return named[0].name if is_whole else ""
