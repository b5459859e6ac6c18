"""Sizes that depend on the numbers of the inputs, as of a selection by a mask: those of the example stand for all."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map

from hessprune.errors import UnsupportedModelError
from hessprune.foundation.formatting import shown
from hessprune.operators.call import module_of


def has_open_sizes(program: ExportedProgram) -> bool:
    """Return whether the graph has values, or sizes of values, that are known only when it runs."""
    return any(_is_open(value) for node in program.graph.nodes for value in tree_leaves(node.meta.get("val")))


def settle_sizes(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the graph once, and write the sizes that it meets in the place of the open ones.

    Surgery leaves the inputs as they are, so that a selection by their numbers keeps its size.

    Args:
        program: Of a model in evaluation mode; changed in place.
        args: The example's positional arguments.
        kwargs: The example's keyword arguments.

    Raises:
        UnsupportedModelError: A selection is empty, so that what reads it is not seen.
    """
    reader = Interpreter(program.graph_module, garbage_collect_values=False)
    reader.run(*_flat_inputs(program, args, kwargs))
    for node, value in reader.env.items():
        is_data = isinstance(value, Tensor) and value.is_floating_point()  # no places to which nothing is written
        if is_data and _is_open(node.meta.get("val")) and not value.numel():
            raise UnsupportedModelError(
                "the example inputs must reach every selection by their numbers, as of samples for an expert, but one "
                f"in {shown(module_of(node) or 'the model')} selects nothing. Pass more samples as "
                "`example_inputs`."
            )
    for node, value in reader.env.items():
        if node.op != "output":
            node.meta["val"] = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, value)
    numbers = {node: value for node, value in reader.env.items() if isinstance(value, bool | int | float)}
    for node in program.graph.nodes:
        for name in ("args", "kwargs"):
            known = map_aggregate(
                getattr(node, name), lambda arg: numbers.get(arg, arg) if isinstance(arg, Node) else arg
            )
            setattr(node, name, known)
    for node in reversed(program.graph.nodes):  # arithmetic of sizes, and what it promises, are done with
        if node.op == "call_function" and not node.users and (node in numbers or reader.env.get(node) is None):
            program.graph.erase_node(node)


def _is_open(value: Any) -> bool:
    if isinstance(value, Tensor):
        return any(not isinstance(size, int) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def _flat_inputs(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield the values of all placeholders."""
    given = iter(tree_leaves((args, kwargs)))
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            yield next(given)
        else:
            target = str(spec.target)
            yield program.state_dict[target] if target in program.state_dict else program.constants[target]
