"""The table from ATen operator names to the rule that runs it on labels."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from hessprune.operators.call import Call

Rule = Callable[["Call"], Any]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named without overload and without the in-place underscore."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def operator_name(target: Any) -> str:
    """Return `"conv2d"` for `aten.conv2d.padding`, `"relu"` for `aten.relu_.default`, `"getitem"` for Python's."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name
        return name.removeprefix("aten::").rstrip("_") if name.startswith("aten::") else name
    return getattr(target, "__name__", str(target))
