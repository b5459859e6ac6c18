"""The readout of an estimator: rows of weights, and their sums over units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hessprune.curvature.results import ParamSlice, Slices
from hessprune.errors import ArgumentError, UnsupportedModelError
from hessprune.foundation.checks import nearest
from hessprune.layers.folding import Folded


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Rows that an estimator reads at the weights, and their sums over units."""

    slices: Slices
    axes: Mapping[str, tuple[int, ...]]
    """For each weight the axes along which its slices count."""
    factors: Mapping[str, Tensor]
    """Squared folding factors, broadcastable to the weight."""
    repeated: frozenset[str]
    """Weights that the model uses more than once; their gradients are added up before they are squared."""

    @property
    def num_units(self) -> int:
        """Number of units over all keys."""
        return sum(pieces[0].num_units for pieces in self.slices.values())

    def gather(self, rows: Mapping[tuple[str, int], Tensor], like: Tensor) -> Tensor:
        """Sum rows `(N, size)` into units, `(N, num_units)` in float64, keys one after another.

        A weight without a row has no effect on what counts; `like` is one number for each sample.
        """
        return torch.cat([
            sum(
                (self._piece(rows[p.param, p.dim], p.index, p.scale) for p in pieces if (p.param, p.dim) in rows),
                start=like.new_zeros(len(like), pieces[0].num_units, dtype=torch.float64),
            )
            for pieces in self.slices.values()
        ], dim=1)  # fmt: skip

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """Cut a tensor `(..., num_units)` into one per key, on the CPU."""
        sizes = [pieces[0].num_units for pieces in self.slices.values()]
        return dict(zip(self.slices, values.cpu().double().split(sizes, dim=-1), strict=True))

    @staticmethod
    def _piece(rows: Tensor, index: Tensor, scale: Tensor | None) -> Tensor:
        units = rows[:, index].double().sum(-1)
        return units if scale is None else units * scale


def read_out(model: nn.Module, slices: Slices, folded: Folded) -> Readout:
    """Match `slices` to the weights of `model` and to their uses.

    Raises:
        ArgumentError: A slice names no weight, or does not fit the weight.
        UnsupportedModelError: No convolution or linear map uses a weight.
    """
    shapes = {name: value.shape for name, value in model.named_parameters(remove_duplicate=False)}
    first_name = _canonical_names(model)
    for key, pieces in slices.items():
        _check_key(key, pieces, shapes)
    device = next(folded.model.parameters()).device  # positions are copied once, not at every readout
    renamed = {
        key: [_on(replace(p, param=first_name[p.param]), device) for p in pieces] for key, pieces in slices.items()
    }
    every = [piece for pieces in renamed.values() for piece in pieces]
    unused = sorted({piece.param for piece in every if not folded.recording.count(piece.param)})
    if unused:
        raise UnsupportedModelError(
            f"`slices` must name weights of convolutions or linear maps, got {', '.join(map(repr, unused))}, which the "
            "model passes to neither. Leave them out, as with hp.find_groups(model, example_inputs, "
            f"ignore=({unused[0].rpartition('.')[0]!r},)), or use method='magnitude'."
        )
    shared = sorted({piece.param for piece in every} & folded.recording.shared)
    if shared:
        raise UnsupportedModelError(
            f"`slices` must name weights that read samples, got {', '.join(map(repr, shared))}, whose inputs are the "
            "same for all samples, as a table of positions is. Leave them out, as with hp.find_groups(model, "
            f"example_inputs, ignore=({shared[0].rpartition('.')[0]!r},)), or use method='magnitude'."
        )
    return Readout(
        slices=renamed,
        axes={p.param: tuple(sorted({q.dim for q in every if q.param == p.param})) for p in every},
        factors={name: scale.square() for name, scale in folded.scale.items()},
        repeated=frozenset(piece.param for piece in every if folded.recording.count(piece.param) > 1),
    )


def _on(piece: ParamSlice, device: torch.device) -> ParamSlice:
    scale = None if piece.scale is None else piece.scale.to(device, torch.float64)
    return replace(piece, index=piece.index.to(device), scale=scale)


def _check_key(key: str, pieces: Sequence[ParamSlice], shapes: Mapping[str, torch.Size]) -> None:
    """Raise unless the slices of one key exist, fit their weights and agree on the number of units."""
    if not pieces or len({piece.num_units for piece in pieces}) != 1:
        counts = [piece.num_units for piece in pieces]
        raise ArgumentError(f"`slices`[{key!r}] must hold slices with one common number of units, got {counts}.")
    for piece in pieces:
        if piece.param not in shapes:
            raise ArgumentError(f"`slices` must name parameters, got {piece.param!r}.{nearest(piece.param, shapes)}")
        shape = tuple(shapes[piece.param])
        fits = -len(shape) <= piece.dim < len(shape) and piece.index.dim() == 2
        if not fits or (
            piece.index.numel() and not 0 <= int(piece.index.min()) <= int(piece.index.max()) < shape[piece.dim]
        ):
            raise ArgumentError(
                f"`slices`[{key!r}] must hold positions (U, m) along an axis of {piece.param!r} of shape {shape}, got "
                f"dim {piece.dim} and index of shape {tuple(piece.index.shape)}."
            )


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a parameter to its first name."""
    first = {id(value): name for name, value in model.named_parameters()}
    return {name: first[id(value)] for name, value in model.named_parameters(remove_duplicate=False)}
