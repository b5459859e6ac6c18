"""Layers that the example inputs do not reach: they keep their width, and may read a group that shrinks."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.export import ExportedProgram

from hessprune.foundation.formatting import shortened
from hessprune.foundation.modules import split_name
from hessprune.structure.groups import Group


def unread_parameters(model: nn.Module, programs: Sequence[ExportedProgram]) -> list[str]:
    """Return the parameters that no graph reads under any of their names, by the first name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.numel():
            names.setdefault(id(parameter), []).append(name)
    read: set[str] = set()
    known: set[str] = set()
    for program in programs:
        users = {node.name for node in program.graph.find_nodes(op="placeholder") if node.users}
        for node, name in program.graph_signature.inputs_to_parameters.items():
            known.add(name)
            read |= {name} if node in users else set()
    return [same[0] for same in names.values() if not known.isdisjoint(same) and read.isdisjoint(same)]


def unreached_layers(model: nn.Module, unread: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Return the layers of unread parameters that take as many channels as a group gives.

    Only these can fail after pruning: on inputs that do reach them.
    """
    by_layer: dict[str, list[Tensor]] = {}
    for name in unread:
        by_layer.setdefault(split_name(name)[0], []).append(model.get_parameter(name))
    sizes = set(_sizes(model, groups))
    return [name for name, own in by_layer.items() if sizes & {*_read_sizes(model.get_submodule(name), own)}]


def advice_on(layers: Sequence[str]) -> str:
    """Return a warning about unreached layers, with its remedies.

    Example:
        >>> from hessprune.structure.unreached import advice_on
        >>> advice_on(["proj"]).split(":")[0]
        'layers that the forward does not use on `example_inputs` keep their width'
    """
    return (
        f"layers that the forward does not use on `example_inputs` keep their width: {shortened(layers, 3)}. Other "
        "inputs may fail after pruning. Pass `example_inputs` that reach them; or leave the layers in front of them "
        "whole with find_groups(…, ignore=…), or ranking=hp.Ranking(ignore=…) in hp.prune."
    )


def _sizes(model: nn.Module, groups: Sequence[Group]) -> Iterator[int]:
    """Yield the sizes of all axes that groups shorten."""
    for piece in (piece for group in groups for piece in group.slices):
        owner, name = split_name(piece.param)
        yield getattr(model.get_submodule(owner), name).shape[piece.dim]


def _read_sizes(layer: nn.Module, own: Sequence[Tensor]) -> Iterator[int]:
    """Yield the numbers of channels that a layer with some parameters may read."""
    if isinstance(layer, nn.Embedding):
        return
    weights = [tensor for tensor in own if tensor.dim() > 1]
    for tensor in weights or [tensor for tensor in own if tensor.dim()]:
        yield tensor.shape[0 if tensor.dim() == 1 or getattr(layer, "transposed", False) else 1]
