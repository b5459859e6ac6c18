"""Run a captured graph on labels: one `Call` per operator, one rule per operator, unknown operators freeze by name."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map

from hessprune.structure.groups import Role
from hessprune.structure.labels import Labels, along, constant, expanded, varies
from hessprune.structure.rules.registry import RULES, operator_name

MAX_ELEMENT_LABELS = 4_000_000


@dataclass(frozen=True)
class Leaf:
    """A parameter or floating-point buffer of the model, under its first name."""

    name: str
    shape: torch.Size


@dataclass(frozen=True)
class Value:
    """A tensor whose numbers matter, not its labels: integer buffers and constants used as indices."""

    tensor: Tensor


@dataclass(kw_only=True)
class LiteralUse:
    """An integer attribute that counts labels: `counts` labels of the axis `labels` belong to it."""

    module: str
    attribute: str
    labels: Tensor


@dataclass
class Axis:
    """The labels of one parameter axis; `roles` says how the graph uses it."""

    labels: Tensor
    roles: set[Role] = field(default_factory=set)


class GraphWalk:
    """All labels of one model: of its parameter axes, of single elements where needed, and the ties between them."""

    def __init__(self, model: nn.Module, program: ExportedProgram) -> None:
        self.labels = Labels()
        self.axes: dict[tuple[str, int], Axis] = {}
        self.elements: dict[str, Tensor] = {}
        self.literals: list[LiteralUse] = []
        self.splits: list[tuple[Tensor, tuple[int, ...]]] = []
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._state = {
            **dict(model.named_buffers(remove_duplicate=False)),
            **dict(model.named_parameters(remove_duplicate=False)),
        }
        self._first_name: dict[int, str] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._first_name.setdefault(id(tensor), name)
        self._env: dict[Node, Any] = {}
        self._run(program)

    def axis(self, leaf: Leaf, dim: int, role: Role) -> Tensor:
        """Return the labels of one axis of a parameter, `(size,)`, made on first use."""
        key = (leaf.name, dim % len(leaf.shape))
        if key not in self.axes:
            self.axes[key] = Axis(self.labels.new(leaf.shape[dim]))
        self.axes[key].roles.add(role)
        return self.axes[key].labels

    def as_labels(self, value: Any) -> Tensor:
        """Return labels for anything a graph node can hold; parameters used element-wise get one label an element."""
        if isinstance(value, Leaf):
            return self._leaf_labels(value)
        if isinstance(value, Value):
            return constant(value.tensor.shape)
        return value

    def channels(self, activation: Any, dim: int) -> Tensor:
        """Tie everything that shares an index along `dim` and return one label per index."""
        labels = self.as_labels(activation)
        for other in range(labels.dim()):
            if other != dim % labels.dim():
                self.labels.tie_along(labels, other)
                labels = labels.narrow(other, 0, 1)
        return labels.reshape(-1)

    def _leaf_labels(self, leaf: Leaf) -> Tensor:
        long = [dim for dim, size in enumerate(leaf.shape) if size > 1]
        if len(long) <= 1:
            dim = long[0] if long else 0
            if not leaf.shape or leaf.shape.numel() == 1:
                return constant(leaf.shape)
            return along(self.axis(leaf, dim, "follower"), dim, leaf.shape)
        if leaf.name not in self.elements:
            if leaf.shape.numel() > MAX_ELEMENT_LABELS:
                self.elements[leaf.name] = self.labels.new(1).expand(leaf.shape)
                self.labels.freeze(
                    self.elements[leaf.name], f"parameter '{leaf.name}' is too large to follow element by element"
                )
            else:
                self.elements[leaf.name] = self.labels.new(leaf.shape.numel()).view(leaf.shape)
        return self.elements[leaf.name]

    def _run(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        state_names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = {
            name: program.constants.get(target) for name, target in signature.inputs_to_lifted_tensor_constants.items()
        }
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self._env[node] = self._placeholder(node, state_names, constants)
            elif node.op == "call_function":
                self._env[node] = _settle(self._call(node))
            elif node.op == "output":
                self._freeze_all(self._lookup(node.args), "the model returns it")
        self._close_splits()

    def _placeholder(self, node: Node, state_names: dict[str, str], constants: dict[str, Any]) -> Any:
        if node.name in state_names:
            tensor = self._state[state_names[node.name]]
            if not tensor.is_floating_point():
                return Value(tensor.detach())
            return Leaf(self._first_name[id(tensor)], tensor.shape)
        held = constants.get(node.name)
        if isinstance(held, Tensor) and not held.is_floating_point():
            return Value(held.detach())
        shape = getattr(node.meta.get("val"), "shape", None)
        if shape is None:
            return None
        kind = "a constant of the source code" if held is not None else f"the model's input '{node.name}'"
        return self.fixed(shape, f"it meets {kind}") if len(shape) and shape.numel() > 1 else constant(shape)

    def fixed(self, shape: torch.Size, reason: str) -> Tensor:
        """Return labels for a tensor that keeps its shape: one frozen label."""
        labels = self.labels.new(1).expand(shape)
        self.labels.freeze(labels, reason)
        return labels

    def _call(self, node: Node) -> Any:
        call = Call(self, node)
        if (folded := call.fold()) is not None:
            return folded
        handler = RULES.get(call.operator)
        if handler is None:
            return call.refuse(f"operator '{call.operator}'{call.where} has no rule")
        return handler(call)

    def _lookup(self, tree: Any) -> Any:
        return tree_map(lambda arg: self._env[arg] if isinstance(arg, Node) else arg, tree)

    def _freeze_all(self, tree: Any, reason: str) -> None:
        for value in tree_leaves(tree):
            if isinstance(value, Tensor | Leaf):
                self.labels.freeze(self.as_labels(value), reason)

    def _close_splits(self) -> None:
        """Where a view split one axis in two, units may vary along one of the parts only: tie across the outer one."""
        settled = False
        while not settled:
            settled = True
            roots = torch.from_numpy(self.labels.roots())
            for labels, dims in self.splits:
                now = expanded(roots[labels])
                varying = [dim for dim in dims if varies(now, dim)]
                if len(varying) > 1:
                    self.labels.tie_along(labels, varying[0])
                    settled = False


class Call:
    """One operator of the graph with its arguments by name, and what a rule may do with them."""

    def __init__(self, walk: GraphWalk, node: Node) -> None:
        self.walk = walk
        self.labels = walk.labels
        self.node = node
        self.operator = operator_name(node.target)
        self.args: tuple[Any, ...] = walk._lookup(node.args)
        self.kwargs: dict[str, Any] = walk._lookup(node.kwargs)
        self.named = self._bind()

    def _bind(self) -> dict[str, Any]:
        schema = getattr(self.node.target, "_schema", None)
        if schema is None:
            return {}
        bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        bound.update(zip((argument.name for argument in schema.arguments), self.args, strict=False))
        return {**bound, **self.kwargs}

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    def get(self, name: str) -> Any:
        """Return an argument or None."""
        return self.named.get(name)

    @property
    def shape(self) -> torch.Size:
        """Shape of the (first) output."""
        value = self.node.meta["val"]
        return (value[0] if isinstance(value, tuple | list) else value).shape

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
        found = [arg for arg in tree_leaves((self.args, self.kwargs)) if isinstance(arg, Tensor | Leaf | Value)]
        return [self.walk.as_labels(arg) for arg in found]

    def fold(self) -> Any:
        """Run operators on integer values for real; None where any argument is not a known value."""
        found = [arg for arg in tree_leaves((self.args, self.kwargs)) if isinstance(arg, Tensor | Leaf | Value)]
        is_known = bool(found) and all(isinstance(arg, Value) for arg in found)
        produced = self.node.meta.get("val")
        if (
            not (is_known or self.operator == "arange")
            or not isinstance(produced, Tensor)
            or produced.is_floating_point()
        ):
            return None
        args, kwargs = tree_map(
            lambda arg: arg.tensor.cpu() if isinstance(arg, Value) else arg, (self.args, self.kwargs)
        )
        kwargs.pop("device", None)
        return Value(self.node.target(*args, **kwargs))  # type: ignore[operator]

    def refuse(self, reason: str) -> Any:
        """Freeze every argument and return frozen labels for every output."""
        for labels in self.tensors():
            self.labels.freeze(labels, reason)
        return tree_map(
            lambda value: self.walk.fixed(value.shape, reason) if isinstance(value, Tensor) else None,
            self.node.meta.get("val"),
        )

    def pin(self, labels: Tensor, dim: int, reason: str) -> None:
        """Freeze what varies along `dim`: this axis keeps its size."""
        if varies(labels, dim):
            self.labels.freeze(labels, reason)


def _settle(value: Any) -> Any:
    return tree_map(lambda item: expanded(item) if isinstance(item, Tensor) else item, value)
