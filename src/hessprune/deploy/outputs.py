"""The structure of a model's output, written into its ONNX file, whose own outputs are a plain list of tensors."""

import json
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from hessprune.foundation.trees import tensors_in

KEY = "hessprune.outputs"
"""The entry of the file's metadata."""


class Fields(dict[str, Any]):
    """The fields of a dataclass, read by name, as attributes or by position, such as those of a `ModelOutput`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})
        self.__dict__.update(values)

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)


def structure_of(output: Any) -> str:
    """Return a text from which `structured` builds a model's output anew.

    Example:
        >>> import torch
        >>> structure_of((torch.zeros(2), {"mask": torch.zeros(2)}))
        '["tuple", [["tensor", null], ["dict", [["mask", ["tensor", null]]]]]]'
    """
    return json.dumps(_described(output))


def structured(text: str, tensors: Sequence[Tensor]) -> Any:
    """Return a file's outputs as the model returned them; without a text, one tensor or a tuple.

    Args:
        text: From `structure_of`, or empty.
        tensors: In the order of `tensors_in`.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(1), torch.ones(1)
        >>> structured(structure_of({"first": x, "rest": (y,)}), [x, y])
        {'first': tensor([0.]), 'rest': (tensor([1.]),)}
    """
    if text:
        output = _built(json.loads(text), iter(tensors))
        if len(list(tensors_in(output))) == len(tensors):
            return output
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _described(output: Any) -> list[Any]:
    """Return a kind, and what it holds."""
    if isinstance(output, Tensor):
        return ["tensor", None]
    if is_dataclass(output) and not isinstance(output, type):
        return ["fields", [[field.name, _described(getattr(output, field.name))] for field in fields(output)]]
    if isinstance(output, Mapping):
        return ["dict", [[name if isinstance(name, int) else str(name), _described(output[name])] for name in output]]
    if isinstance(output, tuple | list):
        if names := getattr(output, "_fields", ()):
            return ["named tuple", [[name, _described(value)] for name, value in zip(names, output, strict=True)]]
        return ["tuple" if isinstance(output, tuple) else "list", [_described(value) for value in output]]
    return ["nothing", None]


def _built(described: list[Any], tensors: Any) -> Any:
    """Build what `_described` has described, with the next tensors."""
    kind, held = described
    if kind == "tensor":
        return next(tensors, None)
    if kind in ("tuple", "list"):
        return (tuple if kind == "tuple" else list)(_built(value, tensors) for value in held)
    if kind == "nothing":
        return None
    values = {name: _built(value, tensors) for name, value in held}
    if kind == "named tuple":
        return namedtuple("Output", values)(**values)
    return Fields(values) if kind == "fields" else values
