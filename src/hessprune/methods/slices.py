"""From groups to the named parameter slices that curvature knows."""

from collections.abc import Sequence

from torch import Tensor, nn

from hessprune.curvature.results import ParamSlice
from hessprune.errors import ArgumentError
from hessprune.foundation.sharded import whole_tensor
from hessprune.structure.groups import Group, Slice, producers


def without_tables(model: nn.Module, pieces: Sequence[Slice]) -> list[Slice]:
    """Return the slices of layers: tables of embeddings are looked up, and no gradient of a product reaches them.

    A table that a linear layer shares is a layer; units that tables alone emit keep them.
    """
    owners: dict[int, set[bool]] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), set()).add(isinstance(module, nn.Embedding))
    layers = [piece for piece in pieces if owners.get(id(parameter(model, piece.param))) != {True}]
    return layers or [*pieces]


def weight_rows(model: nn.Module, piece: Slice) -> Tensor:
    """Return the weights of each unit in one slice, flattened: `(U, numel)` in float64."""
    weight = whole_tensor(parameter(model, piece.param).detach()).double().movedim(piece.dim, 0).flatten(1)
    return weight[piece.positions().to(weight.device)].flatten(1)


def producer_slices(model: nn.Module, groups: Sequence[Group], *, hap_scale: bool) -> dict[str, list[ParamSlice]]:
    """Return the producing weights of each group as curvature wants them; groups without any are left out.

    With `hap_scale` each slice counts `‖w_u‖² / (2 numel(w_u))` times its trace, so that the weighted sum of traces is
    the saliency itself and its standard error that of the saliency.
    """
    slices: dict[str, list[ParamSlice]] = {}
    for group in groups:
        for piece in without_tables(model, [*producers(group)]):
            rows = weight_rows(model, piece)
            scale = rows.square().sum(1) / (2 * rows.shape[1]) if hap_scale else None
            entry = ParamSlice(param=piece.param, dim=piece.dim, index=piece.positions(), scale=scale)
            slices.setdefault(group.name, []).append(entry)
    return slices


def parameter(model: nn.Module, name: str) -> Tensor:
    """Return a parameter by name.

    Raises:
        ArgumentError: The model has no such parameter: the groups belong to another one.
    """
    try:
        return model.get_parameter(name)
    except AttributeError as error:
        raise ArgumentError(
            f"`groups` must belong to this model, which has no parameter '{name}'. "
            "Pass hp.find_groups(model, example_inputs)."
        ) from error
