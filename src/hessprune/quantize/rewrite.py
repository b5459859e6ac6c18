"""Rewrite a captured graph so that all of it has an integer counterpart; the function that it computes stays.

BatchNorm goes into the convolution or linear layer in front of it. Where there is none (pre-activation networks, dense
connections) it becomes a 1×1 depthwise convolution, which runtimes run in integers together with the ReLU behind it.
Means over space become average pooling, hard gates clamped depthwise convolutions, zeros for missing channels of every
other pixel a 1×1 convolution, for the same reason. Weights that are computed from parameters become parameters.
"""

import operator
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from hessprune.foundation.modules import split_name
from hessprune.operators.table import Integer, integer_kind

aten = torch.ops.aten
WEIGHT_AXES: dict[Integer | None, int] = {"layer": 0, "transposed layer": 1}
"""Kinds of layers that can be integer, and the axis of the output channels in their weight."""
CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default, 5: aten.conv3d.default}  # by dimensions of the input
GATES = (aten.hardsigmoid.default, aten.hardsigmoid_.default, aten.hardswish.default, aten.hardswish_.default)

PADS = (aten.pad.default, aten.constant_pad_nd.default)
MOVES = "moves"  # mark, in a node's `meta`, of a layer whose outputs are inputs and zeros


def rewrite(module: GraphModule) -> None:
    """Remove BatchNorm and means over space, in place; the graph is one of evaluation mode."""
    _compute_weights(module)
    for node in list(module.graph.nodes):
        if node.op == "call_module":  # only checks that the inputs look like the example
            module.graph.erase_node(node)
        elif node.target is aten.batch_norm.default:
            _remove_batchnorm(module, node)
        elif node.target in (aten.mean.dim, aten.adaptive_avg_pool2d.default):
            _pool(module, node)
        elif node.target in GATES:
            _gate(module, node)
        elif node.target in PADS:
            _pad(module, node)
    for node in list(module.graph.nodes):
        if integer_kind(node.target) in WEIGHT_AXES:
            _read_own_bias(module, node)
    module.graph.eliminate_dead_code()
    _drop_unread(module)
    module.recompile()


def tensor_of(module: nn.Module, node: Node) -> Tensor:
    """Return the parameter or buffer that a `get_attr` node reads."""
    return operator.attrgetter(str(node.target))(module)


def has_weight(node: Node) -> bool:
    """Return whether a node computes a layer whose weight is a parameter, not a value that depends on the inputs."""
    is_layer = integer_kind(node.target) in WEIGHT_AXES
    return is_layer and isinstance(node.args[1], Node) and node.args[1].op == "get_attr"


def layer_name(node: Node) -> str:
    """Return the dotted name of the layer that a node computes: where its weight lives, or where it was captured."""
    if has_weight(node):
        return split_name(str(node.args[1].target))[0]  # type: ignore[union-attr]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else node.name


def _compute_weights(module: GraphModule) -> None:
    """Let layers read parameters of their own where they read computed ones: normalised, sliced or transposed."""
    known = _sources(module)
    for layer in [node for node in module.graph.nodes if integer_kind(node.target) in WEIGHT_AXES]:
        for read in layer.args[1:3]:
            if isinstance(read, Node) and read.op != "get_attr" and read in known:
                _compute_weight(module, read, known[read])


@torch.no_grad()
def _compute_weight(module: GraphModule, node: Node, sources: list[Node]) -> None:
    """Put a parameter in the place of a node that is computed from parameters and buffers, beside the first of them."""
    held = [source for source in sources if isinstance(tensor_of(module, source), nn.Parameter)]
    path, parameter = (
        str([*held, *sources][0].target) if sources else node.name,
        nn.Parameter(_computed(module, node).contiguous()),
    )
    while any(other.target == path for other in module.graph.nodes):
        path += "_"
    parameter.requires_grad_(any(tensor_of(module, source).requires_grad for source in sources))
    parent, attribute = split_name(path)
    module.get_submodule(parent).register_parameter(attribute, parameter)
    with module.graph.inserting_before(node):
        own = module.graph.get_attr(path)
    own.meta["val"] = node.meta["val"].fake_mode.from_tensor(parameter)
    node.replace_all_uses_with(own)


def _sources(module: GraphModule) -> dict[Node, list[Node]]:
    """Return the parameters and buffers that each value is computed from, for all that depend on nothing else."""
    found: dict[Node, list[Node]] = {}
    for node in module.graph.nodes:
        draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "get_attr":
            found[node] = [node]
        elif node.op == "call_function" and not draws and all(x in found for x in node.all_input_nodes):
            found[node] = list(dict.fromkeys(source for x in node.all_input_nodes for source in found[x]))
    return found


def _computed(module: GraphModule, node: Node) -> Any:
    """Return the value of a node that depends on parameters and buffers only."""
    if node.op == "get_attr":
        return tensor_of(module, node)
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda x: _computed(module, x))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _read_own_bias(module: GraphModule, layer: Node) -> None:
    """Let a layer that is used several times read its bias at each use: its steps depend on the values that come in."""
    bias = layer.args[2] if len(layer.args) > 2 else None
    if isinstance(bias, Node) and bias.op == "get_attr" and len(bias.users) > 1:
        with module.graph.inserting_before(layer):
            own = module.graph.get_attr(str(bias.target))
        own.meta = dict(bias.meta)
        layer.replace_input_with(bias, own)


def _remove_batchnorm(module: GraphModule, node: Node) -> None:
    """Put `BN(x) = factor·x + shift` into the layer that computes x, or into a depthwise convolution of its own."""
    x, weight, bias, mean, variance, _, _, epsilon, _ = _tensors(module, node)
    factor = (variance.double() + epsilon).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    if integer_kind(x.target) == "layer" and len(x.users) == 1:
        _fold(module, x, factor, shift)
        node.replace_all_uses_with(x)
    elif (dims := x.meta["val"].dim()) in CONVOLUTIONS:
        owner, ones = split_name(str(node.args[4].target))[0], [1] * (dims - 2)  # type: ignore[union-attr]
        with module.graph.inserting_before(node):
            new = module.graph.call_function(
                CONVOLUTIONS[dims], (x, None, None, ones, [0] * (dims - 2), ones, len(factor))
            )
        new.meta = dict(node.meta)
        _set_parameters(module, new, owner, {"weight": factor.reshape(-1, *(1,) * (dims - 1)), "bias": shift}, node)
        node.replace_all_uses_with(new)
    else:
        return
    module.graph.erase_node(node)


def _fold(module: GraphModule, layer: Node, factor: Tensor, shift: Tensor) -> None:
    """Scale the outputs of a layer and shift them."""
    _, weight, bias, *_ = (*_tensors(module, layer), None)
    assert isinstance(weight, Tensor)
    values = {
        "weight": weight * factor.reshape(-1, *(1,) * (weight.dim() - 1)),
        "bias": shift if bias is None else shift + bias * factor,
    }
    _set_parameters(module, layer, split_name(str(layer.args[1].target))[0], values, layer)  # type: ignore[union-attr]


def _set_parameters(module: GraphModule, node: Node, owner: str, values: dict[str, Tensor], replaced: Node) -> None:
    """Give a layer new weights under the old names; where other layers read these too, under new ones."""
    reads, like = [], node.args[0].meta["val"]  # type: ignore[union-attr]
    for name, value in values.items():
        parameter = nn.Parameter(value.to(like.device, like.dtype))
        path = f"{owner}.{name}".lstrip(".")
        while any(other.target == path and set(other.users) - {replaced} for other in module.graph.nodes):
            path += "_"
        parent, attribute = split_name(path)
        module.get_submodule(parent).register_parameter(attribute, parameter)
        with module.graph.inserting_before(node):
            reads.append(module.graph.get_attr(path))
        reads[-1].meta["val"] = like.fake_mode.from_tensor(parameter)
    node.args = (node.args[0], *reads, *node.args[3:])


def _pool(module: GraphModule, node: Node) -> None:
    """Replace a mean over both axes of space by average pooling and, where these axes go, a flattening."""
    x, axes, keeps = _pooled(node)
    shape = x.meta["val"].shape
    whole = [axis % 4 for axis in axes] in ([2, 3], [3, 2])
    if len(shape) != 4 or not whole or not all(isinstance(length, int) for length in shape[2:]):
        return
    with module.graph.inserting_before(node):  # sizes are read when it runs: images may have another size then
        sizes = [module.graph.call_function(aten.sym_size.int, (x, axis)) for axis in (2, 3)]
    for size, length in zip(sizes, shape[2:], strict=True):
        size.meta = node.meta | {"val": length}
    pool = aten.avg_pool2d.default
    steps = [(pool, (sizes,), (list(shape[2:]),))] + ([] if keeps else [(aten.flatten.using_ints, (1,), (1,))])
    for function, arguments, values in steps:
        with module.graph.inserting_before(node):
            new = module.graph.call_function(function, (x, *arguments))
        new.meta = node.meta | {"val": function(x.meta["val"], *values)}
        x = new
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)


def _pooled(node: Node) -> tuple[Any, list[int], bool]:
    """Return what is averaged, over which axes, and whether these stay."""
    arguments: Any = (*node.args, False)
    if node.target is aten.mean.dim:
        return arguments[0], list(arguments[1] or ()), bool(arguments[2])
    return arguments[0], [2, 3] if list(arguments[1]) == [1, 1] else [], True


def _gate(module: GraphModule, node: Node) -> None:
    """Replace hardsigmoid(x) by `min(max(x/6 + ½, 0), 1)`, a depthwise convolution, and hardswish by that times x."""
    x: Any = node.args[0]
    if x.meta["val"].dim() != 4:
        return
    channels = x.meta["val"].shape[1]
    module.add_submodule(node.name, nn.Module())
    with module.graph.inserting_before(node):
        gate = module.graph.call_function(aten.conv2d.default, (x, None, None, [1, 1], [0, 0], [1, 1], channels))
        clamped = new = module.graph.call_function(aten.hardtanh.default, (gate, 0.0, 1.0))
        if node.target in GATES[2:]:
            new = module.graph.call_function(aten.mul.Tensor, (x, clamped))
    for part in (gate, clamped, new):
        part.meta = dict(node.meta)
    values = {
        "weight": torch.full((channels, 1, 1, 1), 1 / 6, device="cpu"),
        "bias": torch.full((channels,), 0.5, device="cpu"),
    }
    _set_parameters(module, gate, node.name, values, node)
    module.get_submodule(node.name).requires_grad_(False)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _pad(module: GraphModule, node: Node) -> None:
    """Replace channels of zeros around a sampled image, as in shortcuts of option A, by a 1×1 convolution."""
    x, strides = _sampled(node.args[0])
    before, after = _channels_of_zeros(node)
    if not before + after or x.meta["val"].dim() != 4 or not isinstance(channels := x.meta["val"].shape[1], int):
        return
    module.add_submodule(node.name, nn.Module())
    with module.graph.inserting_before(node):
        new = module.graph.call_function(aten.conv2d.default, (x, None, None, strides, [0, 0], [1, 1], 1))
    new.meta = node.meta | {MOVES: True}
    one = torch.eye(channels, device="cpu")[:, :, None, None]
    weight = torch.cat([one.new_zeros(before, *one.shape[1:]), one, one.new_zeros(after, *one.shape[1:])])
    _set_parameters(module, new, node.name, {"weight": weight, "bias": torch.zeros(len(weight), device="cpu")}, node)
    module.get_submodule(node.name).requires_grad_(False)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _sampled(node: Any) -> tuple[Node, list[int]]:
    """Follow slices that keep every k-th row and column up to the image; return it, and the steps."""
    steps = [1, 1]
    while node.target is aten.slice.Tensor:
        x, axis, start, stop, step = (*node.args, *(0, 0, sys.maxsize, 1)[len(node.args) - 1 :])
        if (start or 0) != 0 or stop != sys.maxsize or (axis not in (2, 3) and step != 1):
            break
        if axis in (2, 3):
            steps[axis - 2] *= step
        node = x
    return node, steps


def _channels_of_zeros(node: Node) -> tuple[int, int]:
    """Return how many a padding puts before and behind, if that is all it does, else none."""
    amounts, *rest = node.args[1:]
    amounts = list(amounts)  # type: ignore[arg-type]
    plain = len(amounts) == 6 and not any(amounts[:4]) and min(amounts) >= 0 and rest in ([], ["constant"], [0], [0.0])
    return (amounts[4], amounts[5]) if plain and not node.kwargs else (0, 0)


def _tensors(module: nn.Module, node: Node) -> tuple[Any, ...]:
    """Return the arguments of a node, parameters and buffers by value."""
    return tuple(
        tensor_of(module, item).detach() if isinstance(item, Node) and item.op == "get_attr" else item
        for item in node.args
    )


def _drop_unread(module: GraphModule) -> None:
    """Delete the parameters and buffers that nothing reads any more."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())]:
        if name not in read:
            parent, attribute = split_name(name)
            delattr(module.get_submodule(parent), attribute)
