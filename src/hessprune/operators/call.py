"""One operator of a captured graph with its arguments by name, and the actions open to label rules."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from hessprune.foundation.written import WrittenSize
from hessprune.operators.labels import CONSTANT, Labels, varying
from hessprune.operators.leaves import Leaf, LiteralUse, Role, SizeUse, Value
from hessprune.operators.names import operator_name


class Conditions(Protocol):
    """Conditions on labels that are settled when the whole graph has run."""

    def split(self, labels: Tensor, dims: tuple[int, ...]) -> None:
        """Require that the axes `dims`, made from one axis by a view, stay a grid."""

    def pin(self, labels: Tensor, dim: int, reason: str, *, spares_heads: bool = False, cuts: bool = False) -> None:
        """Require that an axis keeps its size; with `spares_heads`, unless all units along it are heads."""

    def normalise(self, labels: Tensor, dim: int) -> bool:
        """Return whether channels that are normalised together may go: on request, if units lie along `dim` alone."""
        ...

    @property
    def frees_widths(self) -> bool:
        """True where units of attention are widths within heads, and not heads."""
        ...

    @property
    def widths(self) -> list[tuple[str, str, Tensor]]:
        """The widths within heads that were found: kind, module and labels."""
        ...

    def meet(self, a: Tensor, b: Tensor, reason: str) -> Tensor:
        """Tie two label tensors that broadcast against each other; return the labels of the result."""
        ...


class Walk(Protocol):
    """The run of a graph on labels, as far as label rules see it."""

    labels: Labels

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Return the modules of the model by name."""
        ...

    @property
    def closure(self) -> Conditions:
        """Return the conditions collected so far."""
        ...

    def as_labels(self, value: Any) -> Tensor:
        """Return labels for an argument: labels, a parameter or integer values."""
        ...

    def axis(self, leaf: Leaf, dim: int, role: Role) -> Tensor:
        """Return the labels of one axis of a parameter, `(size,)`."""
        ...

    def is_buffer(self, leaf: Leaf) -> bool:
        """Return whether no training changes a leaf."""
        ...

    def channels(self, activation: Any, dim: int, reason: str) -> Tensor:
        """Tie all that shares an index along `dim`; return one label per index."""
        ...

    def freeze(self, value: Any, reason: str) -> None:
        """Freeze all labels of an argument."""

    def count(self, module: str, attribute: str, labels: Tensor) -> None:
        """Note that an integer attribute of a module counts these labels."""

    def note_width(self, use: LiteralUse) -> None:
        """Note an integer attribute that tells the width of an input, and on which nothing depends."""

    def shares(self, node: Node, labels: Tensor) -> bool:
        """Return whether heads share what a call reads for each of them, as an earlier walk has shown."""
        ...

    def note_head(self, labels: Tensor) -> None:
        """Note that these labels are heads of attention, or tied to some."""

    def note_size(self, use: SizeUse) -> None:
        """Note a size that the forward of a module may have written down."""

    def run(self, module: GraphModule, inputs: Sequence[Any]) -> Any:
        """Run a graph inside the graph; return its result."""


_CREATING = {"arange", "zeros", "ones", "full", "eye", "scalar_tensor", "tril_indices", "triu_indices"}
"""Operators that make known numbers out of nothing."""


class Call:
    """One operator of the graph. Label rules read its arguments by name and return labels for its output."""

    def __init__(self, walk: Walk, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.walk = walk
        self.labels = walk.labels
        self.node = node
        self.args = args
        self.kwargs = kwargs
        self.operator = operator_name(node.target)
        self.target: Any = node.target
        self._named = self._bind()

    def _bind(self) -> dict[str, Any]:
        """Return all arguments by name, defaults included."""
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
        """The captured output: tensors without numbers."""
        return self.node.meta.get("val")

    @property
    def shape(self) -> torch.Size:
        """Shape of the (first) output."""
        return (self.produced[0] if isinstance(self.produced, tuple | list) else self.produced).shape

    @property
    def module(self) -> str:
        """Dotted name of the innermost module that made this call."""
        return module_of(self.node)

    @property
    def where(self) -> str:
        """` in module 'x'`, for messages."""
        return f" in module '{self.module}'" if self.module else ""

    def tensors(self) -> list[Tensor]:
        """Return the labels of every tensor argument."""
        return [self.walk.as_labels(arg) for arg in self.operands()]

    def operands(self) -> list[Any]:
        """Return every tensor argument in the form in which the walk holds it: labels, parameter or integer values."""
        return [arg for arg in tree_leaves((self.args, self.kwargs)) if isinstance(arg, Tensor | Leaf | Value)]

    def fold(self) -> Any:
        """Run the operator on integer values for real; return None if the numbers of an argument are unknown."""
        operands, outputs = self.operands(), tree_leaves(self.produced)
        is_known = all(isinstance(arg, Value) for arg in operands) and bool(operands or self.operator in _CREATING)
        is_integer = all(isinstance(out, Tensor) and not out.is_floating_point() for out in outputs) and bool(outputs)
        if not is_integer or not is_known or not isinstance(self.target, OpOverload):
            return None
        args, kwargs = tree_map(lambda arg: arg.tensor if isinstance(arg, Value) else arg, (self.args, self.kwargs))
        done = self.target(*args, **{key: value for key, value in kwargs.items() if key != "device"})
        return tree_map(Value, done)

    @property
    def mixing(self) -> str:
        """The reason to keep weights that read another axis than the one along which the units lie."""
        return f"'{self.operator}' mixes positions of channels{self.where}"

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """Return one label per index of an axis; see `Walk.channels`."""
        return self.walk.channels(labels, dim, self.mixing)

    def per_head(self, labels: Tensor, dim: int) -> Tensor:
        """Return labels whose axis `dim` stays where heads, along another axis, share what this call reads it with."""
        axes = varying(labels)
        is_grid = len(axes) > 1 and dim % labels.dim() in axes and not self.walk.closure.frees_widths
        if not is_grid or not self.walk.shares(self.node, labels):
            return labels
        self.labels.tie_along(labels, dim)
        return labels.narrow(dim, 0, 1).expand(labels.shape)

    def vector(self, name: str) -> Tensor | None:
        """Return labels `(C,)` for an argument with one number per channel; None if the call has no such argument."""
        value = self.get(name)
        if isinstance(value, Leaf):
            return self.walk.axis(value, 0, "follower")
        return None if value is None else self.walk.as_labels(value).reshape(-1)

    def meet(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tie the labels that meet in a broadcast element-wise operation; return the labels of the output."""
        rank = max(labels.dim() for labels in tensors)
        padded = [labels.reshape([1] * (rank - labels.dim()) + list(labels.shape)) for labels in tensors]
        out = padded[0]
        for labels in padded[1:]:
            out = self.walk.closure.meet(out, labels, f"it is spread over several units{self.where}")
        return out

    def pin(self, labels: Tensor, dim: int, reason: str, *, spares_heads: bool = False, cuts: bool = False) -> None:
        """Freeze the units along `dim`: this axis keeps its size; with `spares_heads`, unless all of them are heads.

        An axis that the operator `cuts` into unequal parts stays as a whole, whatever it meets.
        """
        self.walk.closure.pin(labels, dim, f"{reason}{self.where}", spares_heads=spares_heads, cuts=cuts)

    def normalise(self, labels: Tensor, dim: int) -> bool:
        """Return whether channels may go from a norm, which then normalises those that stay.

        The call must be made by a module that has one number per channel, or several, and nothing else.
        """
        module = self.walk.modules.get(self.module)
        tensors = [] if module is None else [*module.parameters(), *module.buffers()]
        is_norm = bool(tensors) and all(tensor.numel() == labels.shape[dim] for tensor in tensors)
        return is_norm and self.walk.closure.normalise(labels, dim)

    def note_width(self, kind: str, labels: Tensor, dim: int) -> None:
        """Note that units along an axis are widths within heads: of queries and keys, or of values."""
        self.walk.closure.widths.append((kind, self.module, self.channels(labels, dim)))

    def note_size(self, written: WrittenSize, out: Tensor, *, is_open: bool = False) -> None:
        """Note the size of an axis along which units lie; an open one varies, since the axis holds the batch, too."""
        for other in range(out.dim()):
            out = out if other == written.axis else out.narrow(other, 0, 1)
        name = written.name_in(self.walk.modules.get(self.module))
        self.walk.note_size(SizeUse(module=self.module, name=name, labels=out.reshape(-1)[: 0 if is_open else None]))

    def refuse(self, reason: str) -> Any:
        """Freeze every argument and return fixed labels for every output.

        Arguments that stay anyway have a reason of their own; with no other argument, the output has a fixed size.
        """
        operands = self.operands()
        stays = [labels for labels in operands if isinstance(labels, Tensor) and not bool((labels > CONSTANT).any())]
        if len(stays) == len(operands):
            reason = f"it meets a tensor of fixed size{self.where}"
        for operand in operands:
            self.walk.freeze(operand, reason)
        fixed = self.labels.fixed
        return tree_map(lambda value: fixed(value.shape, reason) if isinstance(value, Tensor) else None, self.produced)


def module_of(node: Node) -> str:
    """Return the dotted name of the innermost module that made a call; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(list(stack.values())), ("", ""))[0]
