"""Implants: put low-rank stand-ins in the place of filters, as plain layers side by side.

    x ──┬── k×k, kept filters ─────────────┬── concatenate ──▶ the same channels as before
        └── 1×1 (or k×k → r, then 1×1) ────┘

Units stand in order, kept before implanted, in every slice of their group (see `arrangement`): nothing has to be
permuted when the model runs. Where several groups share a layer's outputs, full filters and stand-ins alternate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hessprune.planning.plan import Plan
from hessprune.structure.carriers import CONVOLUTIONS, centre, centre_padding
from hessprune.surgery.implants.arrangement import origins
from hessprune.surgery.implants.stand_ins import flat_padding

Start = Literal["centre", "zero"]
"""Weights of stand-ins before any fit: the centre of the kernel (with a rank, the main components), or zero."""
PADDING = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


class Implanted(nn.Module):
    """Full filters and stand-ins of one layer side by side, `(N, I, *) → (N, O, *)`; parts are plain layers.

    Args:
        parts: Layers in the order of their outputs.
        stand_in: Which of them are stand-ins: these read `base(x)` instead of `x`.
        base: `r` filters of the full kernel, or the padding that moves the input under 1×1 filters; identity if None.
        dim: Where outputs are concatenated, counted from behind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hessprune.surgery.implants.module import Implanted
        >>> parts = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)]
        >>> Implanted(parts, [False, True], dim=-3)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 6, 8, 8])
    """

    def __init__(
        self, parts: Sequence[nn.Module], stand_in: Sequence[bool], *, base: nn.Module | None = None, dim: int
    ) -> None:
        super().__init__()
        self.base = base or nn.Identity()
        self.parts = nn.ModuleList(parts)
        self.stand_in = tuple(stand_in)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the outputs of the parts."""
        low = self.base(x)
        pairs = zip(self.parts, self.stand_in, strict=True)
        return torch.cat([part(low if small else x) for part, small in pairs], self.dim)

    def extra_repr(self) -> str:
        """Show which parts are stand-ins."""
        return f"stand_in={self.stand_in}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One layer inside an `Implanted`, with the dense output rows that it stands for."""

    name: str
    layer: Any
    is_stand_in: bool
    rows: Tensor  # (O,) positions among the dense layer's outputs


def insert_stand_ins(pruned: nn.Module, dense: nn.Module, plan: Plan, *, start: Start = "centre") -> None:
    """Replace the layers of an arranged and sliced model that hold stand-ins, in place.

    Args:
        pruned: The model without the removed units.
        dense: The model that the plan was made for.
        plan: Names the layers and the implanted units.
        start: Weights of the stand-ins: the centre of their filters' kernels (with a rank, the main components of all
            filters), or zero.
    """
    for name, rank in plan.stand_ins.items():
        layer, rows = pruned.get_submodule(name), _rows(dense, plan, name)
        small = torch.isin(rows, _implanted_rows(plan, name))
        if small.any():
            _replace(pruned, layer, _implanted(layer, small, rank, start))


def parts_of(pruned: nn.Module, dense: nn.Module, plan: Plan) -> Iterator[tuple[str, Implanted, list[Part]]]:
    """Yield every implanted layer: its name, the module, and its parts."""
    for name in plan.stand_ins:
        module = pruned.get_submodule(name)
        if not isinstance(module, Implanted):
            continue
        modules: list[Any] = list(module.parts)
        rows = _rows(dense, plan, name).split([part.weight.shape[0] for part in modules])
        each = zip(modules, module.stand_in, rows, strict=True)
        parts = [
            Part(name=f"{name}.parts.{number}", layer=part, is_stand_in=small, rows=part_rows)
            for number, (part, small, part_rows) in enumerate(each)
        ]
        yield name, module, parts


def whole_shapes(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return for the implanted ones of some layers the shape of weight `(O, I)` and bias `(O,)`, as of one layer."""
    modules, shapes = dict(model.named_modules(remove_duplicate=False)), {}
    for name in names:
        module = modules.get(name)
        if isinstance(module, Implanted):
            parts: list[Any] = list(module.parts)
            reader: Any = module.base if hasattr(module.base, "weight") else parts[0]
            outputs = sum(part.weight.shape[0] for part in parts)
            shapes[f"{name}.weight"] = (outputs, reader.weight.shape[1])
            shapes[f"{name}.bias"] = (outputs,)
    return shapes


@torch.no_grad()
def embed_stand_ins(masked: nn.Module, pruned: nn.Module, plan: Plan) -> None:
    """Put full filters that are equal to the stand-ins of a pruned model into a masked dense model, in place."""
    for name, module, parts in parts_of(pruned, masked, plan):
        layer: Any = masked.get_submodule(name)
        columns = origins(plan, {(f"{name}.weight", 1): layer.weight.shape[1]})[f"{name}.weight", 1]
        for part in parts:
            if part.is_stand_in:
                full = layer.weight.new_zeros(len(part.rows), *layer.weight.shape[1:])
                full[:, columns] = _equal_filters(module, part.layer, layer).to(full)
                layer.weight[part.rows] = full
                if layer.bias is not None:
                    layer.bias[part.rows] = part.layer.bias.to(layer.bias)


def factors(filters: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return `heads (O, r)` and `base (r, K)` whose product is nearest to `filters (O, K)`, by singular values."""
    u, s, v = torch.linalg.svd(filters.double(), full_matrices=False)
    room = max(rank - len(s), 0)
    heads, base = u[:, :rank] * s[:rank], v[:rank]
    heads, base = nn.functional.pad(heads, (0, room)), nn.functional.pad(base, (0, 0, 0, room))
    return heads.to(filters), base.to(filters)


def _rows(dense: nn.Module, plan: Plan, name: str) -> Tensor:
    """Return the dense positions of a layer's outputs in the pruned model."""
    axis = (f"{name}.weight", 0)
    return origins(plan, {axis: dense.get_parameter(axis[0]).shape[0]})[axis]


def _implanted_rows(plan: Plan, name: str) -> Tensor:
    pieces = ((g, p) for g in plan.groups for p in g.slices if (p.param, p.dim) == (f"{name}.weight", 0))
    return torch.cat([p.positions(plan.implanted.get(g.name, ())).reshape(-1) for g, p in pieces])


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in another's place, under every name."""
    for parent in list(model.modules()):
        for attribute, child in parent._modules.items():
            if child is old:
                parent._modules[attribute] = new


def _implanted(layer: Any, small: Tensor, rank: int | None, start: Start) -> Implanted:
    """Split a layer into runs of full filters and of stand-ins."""
    flags, lengths = torch.unique_consecutive(small, return_counts=True)
    weight, bias = layer.weight.detach(), layer.bias
    base, heads = _stand_in(layer, weight[small], rank)
    heads = torch.zeros_like(heads) if start == "zero" else heads
    rows = weight.new_empty(weight.shape[0], *heads.shape[1:])
    rows[small] = heads
    parts = []
    indices = torch.arange(len(weight), device="cpu").split(lengths.tolist())
    for flag, index in zip(flags.tolist(), indices, strict=True):
        part_bias = None if bias is None else bias.detach()[index]
        geometry = {"kernel_size": 1, "dilation": 1, "padding": 0} | _small_geometry(layer, rank) if flag else {}
        parts.append(_like(layer, (rows if flag else weight)[index], part_bias, **geometry))
    dim = -1 if isinstance(layer, nn.Linear) else -1 - CONVOLUTIONS[type(layer)]
    return Implanted(parts, flags.tolist(), base=base, dim=dim).train(layer.training)


def _stand_in(layer: Any, filters: Tensor, rank: int | None) -> tuple[nn.Module | None, Tensor]:
    """Return the layer before the stand-ins' last one (or None), and the weights of the last one for some filters."""
    if rank is not None:
        heads, base = factors(filters.flatten(1), rank)
        return _like(layer, base.view(-1, *filters.shape[1:]), None), heads.view(
            *heads.shape, *[1] * (filters.dim() - 2)
        )
    before, after = centre_padding(layer)
    cut = None if before == after and min(before) >= 0 else PADDING[len(before)](tuple(flat_padding(before, after)))
    at = (slice(None), slice(None), *(slice(x, x + 1) for x in centre(layer)))
    return cut, filters[at]


def _small_geometry(layer: Any, rank: int | None) -> dict[str, Any]:
    """Return the geometry with which the last layer of a stand-in reads its input."""
    if rank is not None:
        return {"stride": 1}
    before, after = centre_padding(layer)
    return {"padding": before if before == after and min(before) >= 0 else 0}


def _like(layer: Any, weight: Tensor, bias: Tensor | None, **geometry: Any) -> nn.Module:
    """Return a layer of the same kind with other weights and, where named, another geometry."""
    out, inside = weight.shape[:2]
    if isinstance(layer, nn.Linear):
        new: Any = nn.Linear(inside, out, bias=bias is not None, device="meta")
    else:
        same = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        new = type(layer)(inside, out, **{**same, **geometry}, bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.clone(), requires_grad=layer.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.clone(), requires_grad=layer.bias.requires_grad)
    return new.train(layer.training)


def _equal_filters(module: Implanted, part: Any, dense: Any) -> Tensor:
    """Return the full filters `(O, I, *K)` that are equal to a stand-in."""
    base: Any = module.base
    if hasattr(base, "weight"):
        heads, shared = part.weight.flatten(1).double(), base.weight.flatten(1).double()
        return (heads @ shared).view(-1, *base.weight.shape[1:])
    full = part.weight.new_zeros(*part.weight.shape[:2], *dense.kernel_size)
    full[(slice(None), slice(None), *centre(dense))] = part.weight.flatten(2).squeeze(2)
    return full
