"""The layers of a model for a latency table: shapes, each timed once, and widths that fall with units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_unflatten

from hessprune.costs.products import Product, record_products, size_changes
from hessprune.structure.groups import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """The geometry and the dense widths of a layer, which decide its time. Layers of one shape are timed once."""

    kind: Literal["convolution", "linear"]
    inputs: int
    """Dense input channels or features."""
    outputs: int
    rows: tuple[int, ...]
    """Batch size and spatial sizes of the input; of a linear layer the number of rows."""
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    transposed: bool = False
    groups: int = 1
    inputs_per_group: int | None = None
    """Of a grouped convolution that loses whole groups; None if groups get thinner."""
    varying: tuple[bool, bool] = (True, True)
    """True for inputs and outputs that can shrink."""

    def at(self, inputs: int, outputs: int) -> tuple[int, int, int]:
        """Return inputs, outputs and groups for other widths; a grouped convolution shrinks as a whole."""
        if self.groups == 1:
            return inputs, outputs, 1
        if self.inputs_per_group is None:
            per_group = max(round(inputs / self.groups), 1), max(round(outputs / self.groups), 1)
            return per_group[0] * self.groups, per_group[1] * self.groups, self.groups
        groups = max(round(self.groups * outputs / self.outputs), 1)
        return groups * self.inputs_per_group, groups * (self.outputs // self.groups), groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer: its shape, and the channels that it loses with one unit of each group."""

    name: str
    shape: LayerShape
    inputs: float
    outputs: float
    inputs_per_unit: tuple[float, ...]
    """One number for each group."""
    outputs_per_unit: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """All layers with weights, and the number of values that all products write, which element-wise work follows."""

    layers: tuple[Layer, ...]
    elements: float
    elements_per_unit: tuple[float, ...]


def find_layers(model: nn.Module, groups: Sequence[Group], example_inputs: Any) -> Layers:
    """Return the convolutions and linear layers of one forward, without arithmetic.

    Args:
        model: The dense model; it is not changed.
        groups: From `find_groups`.
        example_inputs: The batch for which layers are to be timed; shapes only.
    """
    products = record_products(model, example_inputs)
    changes = size_changes(model, example_inputs, groups, products, range(len(products)))
    layers, elements, fewer, start = [], 0.0, np.zeros(len(groups)), 0
    for product in products:
        axes = _Axes(product, changes[:, start : start + len(product.sizes)])
        start += len(product.sizes)
        layer, written = _layer(product, axes), axes.out
        layers += [] if layer is None else [layer]
        elements += float(written.sizes.prod())
        fewer += written.sizes.prod() - (written.sizes - written.changes).prod(1)
    return Layers(layers=tuple(layers), elements=elements, elements_per_unit=tuple(fewer.tolist()))


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """Axis sizes of a tensor, `(axes,)`, and their decrease by one unit of each group, `(G, axes)`."""

    sizes: np.ndarray
    changes: np.ndarray


class _Axes:
    """The arguments of a product, with tensors as `_Tensor`."""

    def __init__(self, product: Product, changes: np.ndarray) -> None:
        start, leaves = 0, []
        for leaf in product.leaves:
            if isinstance(leaf, torch.Size):
                part = changes[:, start : start + len(leaf)]
                leaves.append(_Tensor(sizes=np.array(leaf), changes=part))
                start += len(leaf)
            else:
                leaves.append(leaf)
        self.args, _, out = tree_unflatten(leaves, product.spec)
        self.out: _Tensor = out if isinstance(out, _Tensor) else out[0]


def _layer(product: Product, axes: _Axes) -> Layer | None:
    """Read a product as a layer; None for products of two activations."""
    if product.owner and product.operator == "convolution":
        return _named(product.owner, _convolution(axes), axes.args[0], axes.out)
    if product.owner and product.operator in ("mm", "addmm"):
        x, out = axes.args[-2], axes.out
        rows, inputs, outputs = int(x.sizes[0]), int(x.sizes[1]), int(out.sizes[1])
        shape = LayerShape(kind="linear", inputs=inputs, outputs=outputs, rows=(rows,), varying=_varying(x, out))
        return _named(product.owner, shape, x, out)
    return None


def _convolution(axes: _Axes) -> LayerShape:
    x, weight, _, stride, padding, dilation, transposed, output_padding, groups = axes.args
    loses_groups = groups > 1 and x.changes[:, 1].any() and not weight.changes[:, 1].any()
    return LayerShape(
        kind="convolution",
        inputs=int(x.sizes[1]),
        outputs=int(axes.out.sizes[1]),
        rows=(int(x.sizes[0]), *map(int, x.sizes[2:])),
        kernel=tuple(map(int, weight.sizes[2:])),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        output_padding=tuple(output_padding),
        transposed=transposed,
        groups=groups,
        inputs_per_group=int(x.sizes[1]) // groups if loses_groups else None,
        varying=_varying(x, axes.out),
    )


def _varying(x: _Tensor, out: _Tensor) -> tuple[bool, bool]:
    return bool(x.changes[:, 1].any()), bool(out.changes[:, 1].any())


def _named(owner: str, shape: LayerShape, x: _Tensor, out: _Tensor) -> Layer:
    return Layer(
        name=owner.removesuffix(".weight"),
        shape=shape,
        inputs=shape.inputs,
        outputs=shape.outputs,
        inputs_per_unit=tuple(x.changes[:, 1].tolist()),
        outputs_per_unit=tuple(out.changes[:, 1].tolist()),
    )
