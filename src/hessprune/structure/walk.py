"""Run captured graphs on labels: the label rule of each operator gives the labels of its output.

An operator without a rule freezes the labels of its arguments; the reason names the operator.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from hessprune.operators.call import Call
from hessprune.operators.labels import Labels, along, compact, constant, expanded, varying
from hessprune.operators.leaves import Axis, Leaf, LiteralUse, Role, SizeUse, Value
from hessprune.operators.table import operator_of
from hessprune.structure.closure import Closure

MAX_ELEMENT_LABELS = 4_000_000


class GraphWalk:
    """All labels of one model, of parameter axes and (where needed) of single elements, and the ties between them."""

    def __init__(
        self,
        model: nn.Module,
        programs: Sequence[ExportedProgram],
        stuck: Mapping[tuple[str, int], str] | None = None,
        *,
        shared: Collection[Node] = (),
        asked: Collection[str] = (),
    ) -> None:
        self.labels = Labels()
        self.stays = {**(stuck or {})}
        """Axes of parameters that stay as a whole, with the reason, as an earlier walk has shown."""
        self.sharing = {*shared}
        """Calls that read the same for every head, as an earlier walk has shown."""
        self._grids: list[tuple[Node, Tensor]] = []
        self.closure = Closure(self.labels, asked)
        self.axes: dict[tuple[str, int], Axis] = {}
        self.elements: dict[str, Tensor] = {}
        self.sizes: list[SizeUse] = []
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.widths: dict[int, list[LiteralUse]] = {}
        """Attributes that tell the width of an input, by module, once for each call."""
        self._literals: dict[tuple[int, str], LiteralUse] = {}
        self._state: dict[str, Leaf | Value | Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        leaves: dict[int, Leaf | Value | Tensor] = {}
        for named in (model.named_parameters, model.named_buffers):
            for name, tensor in named(remove_duplicate=False):
                self._shapes[name] = tensor.shape
                self._state[name] = leaves.setdefault(id(tensor), self._leaf(name, tensor))
        for program in programs:
            self._run_program(program)
        self._count_heads()
        for name, labels in self.elements.items():
            for part in (labels, *(axis.labels for (other, _), axis in self.axes.items() if other == name)):
                if any(other == name for other, _ in self.axes):
                    self.labels.freeze(part, f"'{name}' is used in two different ways")
        self.closure.close()

    def axis(self, leaf: Leaf, dim: int, role: Role) -> Tensor:
        """Return the labels of one axis of a parameter, `(size,)`; the first call makes them.

        A buffer emits no units of its own: it follows.
        """
        parameter_dim = leaf.dims[dim]
        if parameter_dim is None:
            return constant((1,))
        key = leaf.name, parameter_dim
        if key not in self.axes:
            self.axes[key] = Axis(self.labels.new(self._shapes[leaf.name][parameter_dim]))
            if key in self.stays:
                self.labels.freeze(self.axes[key].labels, self.stays[key])
        self.axes[key].roles.add("follower" if role == "producer" and self.is_buffer(leaf) else role)
        if key in self.stays:
            return self.labels.fixed((leaf.shape[dim],), self.stays[key])
        return self.axes[key].labels[leaf.starts[dim] :][: leaf.shape[dim]]

    def is_buffer(self, leaf: Leaf) -> bool:
        """Return whether no training changes a leaf."""
        return self.is_fixed(leaf.name)

    def is_fixed(self, name: str) -> bool:
        """Return whether a tensor of the model is a buffer."""
        return name in self._buffers

    def as_labels(self, value: Any) -> Tensor:
        """Return labels for the value of a graph node; a parameter used element-wise gets one per element."""
        if isinstance(value, Leaf):
            return self._leaf_labels(value)
        return self._value_labels(value.tensor) if isinstance(value, Value) else value

    def _value_labels(self, tensor: Tensor) -> Tensor:
        """Return labels for integers: where all channels or heads have the same, as in a mask, these may go.

        Whether the size of that axis follows the units shows on trial; all other axes are fixed.
        """
        is_long = not tensor.is_meta and tensor.dim() > 2 and tensor.shape[1] > 1
        if is_long and bool((tensor == tensor.narrow(1, 0, 1)).all()):
            return along(self.labels.new(tensor.shape[1]), 1, tensor.shape)
        return self.labels.fixed(tensor.shape, "it meets a tensor of integers")

    def channels(self, activation: Any, dim: int, reason: str) -> Tensor:
        """Tie all labels that share an index along `dim`; return one label per index.

        If units lie along other axes only, these units may go and this axis stays, for `reason`.
        """
        labels = self.as_labels(activation)
        dim %= labels.dim()
        unit_axes = varying(labels)
        if unit_axes and dim not in unit_axes:
            return self.labels.fixed((labels.shape[dim],), reason)
        for other in unit_axes:
            if other != dim:
                self.labels.tie_along(labels, other)
        for other in range(labels.dim()):
            labels = labels if other == dim else labels.narrow(other, 0, 1)
        return labels.reshape(-1)

    def freeze(self, value: Any, reason: str) -> None:
        """Freeze the value of a graph node; of a parameter, every axis."""
        if isinstance(value, Leaf):
            for dim in range(len(value.shape)):
                self.labels.freeze(self.axis(value, dim, "follower"), reason)
        elif isinstance(value, Tensor):
            self.labels.freeze(value, reason)

    def _leaf_labels(self, leaf: Leaf) -> Tensor:
        """Return labels for a parameter: of its axis if only one is long, of its elements otherwise."""
        long = [dim for dim, size in enumerate(leaf.shape) if size > 1]
        if not long:
            return constant(leaf.shape)
        if len(long) == 1:
            return along(self.axis(leaf, long[0], "follower"), long[0], leaf.shape)
        if leaf.name not in self.elements:
            self.elements[leaf.name] = self._element_labels(leaf)
        labels = self.elements[leaf.name]
        for dim, start, size in zip(leaf.dims, leaf.starts, leaf.shape, strict=True):
            labels = labels if dim is None else labels.narrow(dim, start, size)
        order = [dim for dim in leaf.dims if dim is not None]
        return labels.permute(*order, *(dim for dim in range(labels.dim()) if dim not in order)).reshape(leaf.shape)

    def _element_labels(self, leaf: Leaf) -> Tensor:
        """Return one label for each element of a parameter; fixed labels for a parameter that is too large."""
        shape = self._shapes[leaf.name]
        if shape.numel() > MAX_ELEMENT_LABELS:
            return self.labels.fixed(shape, f"parameter '{leaf.name}' is too large to follow element by element")
        return self.labels.new(shape.numel()).view(shape)

    def count(self, module: str, attribute: str, labels: Tensor) -> None:
        """Note that an integer attribute of a module counts these labels.

        A module that is called twice, or walked in two graphs, has one attribute for both calls: what it counts there
        leaves together.
        """
        use = LiteralUse(module=module, attribute=attribute, labels=labels)
        first = self._literals.setdefault((id(self.modules[module]), attribute), use)
        if first is use:
            return
        if len(first.labels) == len(labels):
            self.labels.tie(first.labels, labels)
        else:
            for each in (first.labels, labels):
                self.labels.freeze(each, f"'{module}.{attribute}' counts channels of two numbers")

    def note_width(self, use: LiteralUse) -> None:
        """Note an integer attribute that tells the width of an input, and on which nothing depends."""
        self.widths.setdefault(id(self.modules[use.module]), []).append(use)

    def stuck(self) -> dict[tuple[str, int], str]:
        """Return the axes of parameters that stay as a whole, whatever else goes: a walk that knows this finds more."""
        roots, found = self.labels.roots(), {}
        for labels, reason in self.closure.stuck():
            frozen = np.unique(roots[labels.numpy()])
            for key, axis in self.axes.items():
                if np.isin(roots[axis.labels.numpy()], frozen).all():
                    found[key] = reason
        return found

    def shares(self, node: Node, labels: Tensor) -> bool:
        """Return whether heads share what a call reads for each of them, as an earlier walk has shown."""
        self._grids.append((node, labels))
        return node in self.sharing

    def shared(self) -> set[Node]:
        """Return the calls that made one unit of all heads: in a walk that knows them, heads share what they read."""
        roots = self.labels.roots()
        heads = np.unique(
            roots[np.concatenate([np.empty(0, np.int64), *(part.numpy() for part in self.closure.heads)])]
        )
        whole = ((node, labels) for node, labels in self._grids if not self.labels.varying(labels))
        return {node for node, labels in whole if np.isin(roots[compact(labels)[0].numpy()], heads[heads > 0]).all()}

    def note_head(self, labels: Tensor) -> None:
        """Note that these labels are heads of attention, or tied to some."""
        self.closure.heads.append(compact(labels)[0].unique())

    def note_size(self, use: SizeUse) -> None:
        """Note a size that the forward of a module may have written down."""
        self.sizes.append(use)

    def _count_heads(self) -> None:
        """Note the heads of torch's multi-head attention: those of the queries stand first."""
        for name, module in () if self.closure.frees_widths else self.modules.items():
            if not isinstance(module, nn.MultiheadAttention):
                continue
            packed = module.in_proj_weight is not None
            rows = self.axes.get((f"{name}.{'in_proj_weight' if packed else 'q_proj_weight'}", 0))
            if rows is not None:
                self.count(name, "num_heads", rows.labels[: module.num_heads * module.head_dim : module.head_dim])

    @property
    def literals(self) -> list[LiteralUse]:
        """Return the attributes that count labels, each once."""
        return [*self._literals.values()]

    def _run_program(self, program: ExportedProgram) -> None:
        """Run a graph on labels for its inputs, and freeze its outputs."""
        signature = program.graph_signature
        state = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        inputs = []
        for node in program.graph.find_nodes(op="placeholder"):
            if node.name in state:
                inputs.append(self._state[state[node.name]])
            elif node.name in constants:
                inputs.append(self._held(program.constants[constants[node.name]]))
            else:
                shape = getattr(node.meta.get("val"), "shape", None)
                reason = f"it meets the model's input '{node.name}'"
                inputs.append(None if shape is None else self.labels.fixed(shape, reason))
        for value in tree_leaves(self.run(program.graph_module, inputs)):
            self.freeze(value, "the model returns it")

    def run(self, module: GraphModule, inputs: Sequence[Any]) -> Any:
        """Run a graph, or a graph inside the graph, on labels; return its result."""
        env: dict[Node, Any] = {}
        values = iter(inputs)
        for node in module.graph.nodes:
            args, kwargs = tree_map(lambda arg: env[arg] if isinstance(arg, Node) else arg, (node.args, node.kwargs))
            if node.op == "placeholder":
                env[node] = next(values)
            elif node.op == "get_attr":
                env[node] = self._held(getattr(module, str(node.target)))
            elif node.op == "call_function":
                env[node] = tree_map(_settled, self._answer(Call(self, node, args, kwargs)))
            elif node.op == "output":
                return args[0]
        raise AssertionError("a graph ends in an output node")

    def _leaf(self, name: str, tensor: Tensor) -> Leaf | Value | Tensor:
        """Return a parameter with labelled axes, or integers with their values; labels for those without."""
        if tensor.is_floating_point():
            return Leaf.of(name, tensor)
        if tensor.is_meta:
            return self.labels.fixed(tensor.shape, f"it meets '{name}', which holds no numbers")
        return Value(tensor.detach().clone().cpu())

    def _held(self, value: Any) -> Any:
        """Return labels for a constant of the source code; integers keep their values."""
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point() and not value.is_meta:  # of a graph without numbers, no constant is known
            return Value(value.detach())
        return self.labels.fixed(value.shape, "it meets a constant of the source code")

    def _answer(self, call: Call) -> Any:
        """Return the labels of the output of one operator."""
        if (folded := call.fold()) is not None:
            return folded
        rule = operator_of(call.target).labels
        return rule(call) if rule else call.refuse(f"operator '{call.operator}'{call.where} has no rule")


def _settled(value: Any) -> Any:
    """Store labels expanded where they do not vary."""
    return expanded(value) if isinstance(value, Tensor) else value
