"""One operator of the graph with its arguments by name, and what a rule may do with them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from hessprune.operators.labels import CONSTANT
from hessprune.operators.leaves import Leaf, Value
from hessprune.operators.table import operator_name

if TYPE_CHECKING:
    from hessprune.structure.walk import GraphWalk


class Call:
    """One operator of the graph: rules read its arguments by name and answer with labels for its result."""

    def __init__(self, walk: "GraphWalk", node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.walk = walk
        self.labels = walk.labels
        self.node = node
        self.args = args
        self.kwargs = kwargs
        self.operator = operator_name(node.target)
        self.target: Any = node.target
        self._named = self._bind()

    def _bind(self) -> dict[str, Any]:
        schema = getattr(self.node.target, "_schema", None)
        if schema is None:
            return {}
        bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        bound.update(zip((argument.name for argument in schema.arguments), self.args, strict=False))
        return {**bound, **self.kwargs}

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def get(self, name: str) -> Any:
        """Return an argument or None."""
        return self._named.get(name)

    @property
    def produced(self) -> Any:
        """The captured result: tensors without numbers."""
        return self.node.meta.get("val")

    @property
    def shape(self) -> torch.Size:
        """Shape of the (first) output."""
        return (self.produced[0] if isinstance(self.produced, tuple | list) else self.produced).shape

    @property
    def module(self) -> str:
        """Dotted name of the innermost module that made this call."""
        stack = self.node.meta.get("nn_module_stack") or {}
        return next(reversed(list(stack.values())), ("", ""))[0]

    @property
    def where(self) -> str:
        """` in module 'x'`, for messages."""
        return f" in module '{self.module}'" if self.module else ""

    def tensors(self) -> list[Tensor]:
        """Labels of every tensor argument."""
        return [self.walk.as_labels(arg) for arg in self.operands()]

    def operands(self) -> list[Any]:
        """Return every tensor argument as it is held: labels, parameters and integer values."""
        return [arg for arg in tree_leaves((self.args, self.kwargs)) if isinstance(arg, Tensor | Leaf | Value)]

    def fold(self) -> Any:
        """Run operators on integer values for real; None where any argument is not a known value."""
        operands = self.operands()
        is_known = bool(operands) and all(isinstance(arg, Value) for arg in operands)
        is_integer = isinstance(self.produced, Tensor) and not self.produced.is_floating_point()
        if not is_integer or not (is_known or self.operator == "arange") or not isinstance(self.target, OpOverload):
            return None
        args, kwargs = tree_map(lambda arg: arg.tensor if isinstance(arg, Value) else arg, (self.args, self.kwargs))
        return Value(self.target(*args, **{key: value for key, value in kwargs.items() if key != "device"}))

    @property
    def mixing(self) -> str:
        """The reason for which weights stay that read another axis than the one along which the units lie."""
        return f"'{self.operator}' mixes positions of channels{self.where}"

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """Return one label per index of an axis; see `GraphWalk.channels`."""
        return self.walk.channels(labels, dim, self.mixing)

    def vector(self, name: str) -> Tensor | None:
        """Return labels `(C,)` for an argument with one number per channel, or None where it is not given."""
        value = self.get(name)
        if isinstance(value, Leaf):
            return self.walk.axis(value, 0, "follower")
        return None if value is None else self.walk.as_labels(value).reshape(-1)

    def meet(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the labels of a broadcast element-wise operation and tie the ones that meet."""
        rank = max(labels.dim() for labels in tensors)
        padded = [labels.reshape([1] * (rank - labels.dim()) + list(labels.shape)) for labels in tensors]
        out = padded[0]
        for labels in padded[1:]:
            out = self.walk.closure.meet(out, labels, f"it is spread over several units{self.where}")
        return out

    def pin(self, labels: Tensor, dim: int, reason: str) -> None:
        """Freeze what varies along `dim`: this axis keeps its size."""
        self.walk.closure.pin(labels, dim, f"{reason}{self.where}")

    def refuse(self, reason: str) -> Any:
        """Freeze every argument and return fixed labels for every output; what is made of nothing else stays anyway."""
        operands = self.operands()
        stays = [labels for labels in operands if isinstance(labels, Tensor) and not bool((labels > CONSTANT).any())]
        if len(stays) == len(operands):
            reason = f"it meets a tensor of fixed size made{self.where}"
        for operand in operands:
            self.walk.freeze(operand, reason)
        fixed = self.labels.fixed
        return tree_map(lambda value: fixed(value.shape, reason) if isinstance(value, Tensor) else None, self.produced)
