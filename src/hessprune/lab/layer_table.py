"""The table of layers in a report: widths, costs before and after, and why each layer kept what it kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch import nn

from hessprune.costs.model import CostModel
from hessprune.costs.products import record_products
from hessprune.lab.report.run_report import LayerRow, LayerWidth
from hessprune.methods.values import Saliency
from hessprune.planning.plan import Plan
from hessprune.planning.ranking import Ranking, removable
from hessprune.structure.groups import Groups


def layer_table(
    dense: nn.Module,
    smaller: nn.Module,
    example_inputs: Any,
    *,
    widths: Sequence[LayerWidth],
    reasons: Mapping[str, str],
) -> tuple[LayerRow, ...]:
    """Return a row for each layer that multiplies, in the order in which the model runs them.

    Args:
        dense: The model before pruning.
        smaller: The model after it; layers keep their names.
        example_inputs: One sample, for which MACs are counted.
        widths: Output channels of the layers that belong to groups.
        reasons: Why a layer kept its channels, by name; empty where nothing is known.
    """
    macs = [_macs_by_layer(model, example_inputs) for model in (dense, smaller)]
    params = [_params_by_layer(model, list(macs[0])) for model in (dense, smaller)]
    known = {width.name: width for width in widths}
    rows = []
    for name in macs[0]:
        before = _width(dense, name)
        kept = known[name].kept + known[name].implanted if name in known else _width(smaller, name)
        rows.append(
            LayerRow(
                name=name,
                width=(known[name].dense if name in known else before, kept),
                macs=(macs[0][name], macs[1].get(name, 0)),
                params=(params[0][name], params[1][name]),
                why=reasons.get(name, ""),
            )
        )
    return tuple(rows)


def reasons_of(
    dense: nn.Module,
    example_inputs: Any,
    groups: Groups,
    plan: Plan,
    saliency: Saliency,
    *,
    ranking: Ranking,
    widths: Sequence[LayerWidth],
) -> dict[str, str]:
    """Say of each layer why it is as wide as it is: its saliency per cost, a floor, rounding, or what freezes it."""
    saved = CostModel(dense, example_inputs, groups).saved_next("macs")
    density = {name: float(saliency[name].mean()) / max(saved[name], 1) for name in plan.kept}
    typical = median(density.values()) if density else 0.0
    shared = Counter(width.group for width in widths)
    by_name, found = {group.name: group for group in groups}, {}
    for item in groups.frozen:
        layer, _, attribute = item.param.rpartition(".")
        if attribute == "weight" and item.dim == 0:
            found.setdefault(layer, f"whole because {item.reason}")
    for width in widths:
        parts = [_worth(density[width.group], typical)] if typical > 0 else []
        units, kept = _units(plan, width.group), len(plan.kept[width.group])
        if kept == units:
            parts.append("no unit is worth removing")
        elif units - kept >= removable(by_name[width.group], ranking):
            parts.append("at its floor")
        if ranking.round_to > 1 and kept < units:
            parts.append(f"a multiple of {ranking.round_to}")
        if shared[width.group] > 1:
            parts.append(f"one width with {shared[width.group] - 1} more")
        kind = by_name[width.group].kind
        found[width.name] = ("" if kind == "channels" else f"{kind}: ") + ", ".join(parts)
    return found


def _worth(density: float, typical: float) -> str:
    """Compare the saliency per MAC of a group's units with the median over the groups."""
    ratio = density / typical
    return f"{ratio:.2g} × the typical saliency per MAC"


def _units(plan: Plan, name: str) -> int:
    return next(group.num_units for group in plan.groups if group.name == name)


def _macs_by_layer(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for product in record_products(model, example_inputs):
        if product.owner:
            layer = product.owner.rpartition(".")[0]
            found[layer] = found.get(layer, 0) + product.macs()
    return found


def _params_by_layer(model: nn.Module, layers: Sequence[str]) -> dict[str, int]:
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    return {layer: sum(size for name, size in sizes.items() if name.startswith(f"{layer}.")) for layer in layers}


def _width(model: nn.Module, layer: str) -> int:
    """Return the rows of a layer's first parameter of two axes or more."""
    named = (value for name, value in model.named_parameters() if name.startswith(f"{layer}.") and value.ndim > 1)
    first = next(named, None)
    return 0 if first is None else len(first)
