r"""Backward passes of columns or draws, with squared per-sample gradients: for `exact` and `rademacher`.

For a column or draw `u_n` in the space of outputs, one backward pass gives `δ = (∂f_n/∂z)ᵀ u_n` at every layer's output
`z`. The draw adds the squared norm of the per-sample weight gradient `Σ_t δ_t a_t` to `Tr(S_nᵀ J_n J_nᵀ S_n)`. Autograd
computes input gradients only. Each layer's contribution is added up during the pass, so that no weight gradient is
kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hessprune.curvature.readout import Readout
from hessprune.foundation.modules import forward
from hessprune.foundation.trees import leading_size
from hessprune.layers.calls import CallMode, slow_attention, weight_names
from hessprune.layers.folding import Folded
from hessprune.layers.per_sample import Geometry, geometry_of, gram_norms, patch_gram
from hessprune.operators.maps import Arguments, Convolution, LinearMap

Read = Callable[[Any, int, Any], Tensor]
"""From a model's output and the number of samples to the values `(N, *)` that count."""


class TapMode(CallMode):
    """Runs the forward pass of one chunk with a tap behind every weight of the readout, then runs backward passes."""

    def __init__(self, folded: Folded, readout: Readout, columns: int, read: Read) -> None:
        names = {key: name for key, name in weight_names(folded.model).items() if name in readout.axes}
        super().__init__(names, 0, folded.recording.layouts)
        self._model = folded.model
        self._readout = readout
        self._columns = columns
        self._read = read
        self._values: Tensor | None = None
        self._anchor = torch.zeros((), requires_grad=True, device="cpu")
        self._rows: dict[tuple[str, int], Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def forward(self, inputs: Any) -> None:
        """Run a chunk, ready for `backward`."""
        self.samples = leading_size(inputs)
        with torch.enable_grad(), slow_attention(), self:
            self._values = self._read(forward(self._model, inputs), self.samples, inputs)

    @property
    def values(self) -> Tensor:
        """The values of the chunk that count, without their graph."""
        assert self._values is not None, "forward comes first"
        return self._values.detach()

    def backward(self, cotangent: Tensor) -> Tensor:
        """Push one vector per sample back; return `(N, num_units)` squared norms in float64."""
        self._rows.clear()
        self._sums.clear()
        self.push_back(cotangent)
        for name, total in self._sums.items():
            self._take(name, total)
        return self._readout.gather(self._rows, self.values.new_zeros(self.samples))

    def push_back(self, cotangent: Tensor) -> None:
        """Push one vector per sample back; every tap receives the gradient at its layer's output."""
        assert self._values is not None, "forward comes first"
        if self._values.requires_grad:  # else nothing that counts depends on a weight of the readout
            u = cotangent.to(self._values)
            torch.autograd.grad(self._values, self._anchor, u, retain_graph=True, allow_unused=True)

    def close(self) -> None:
        """Drop the graph, which refers to this object and is referred to by it."""
        self._values = None
        self._rows.clear()
        self._sums.clear()

    def on_call(self, name: str, call: LinearMap, arguments: Arguments) -> Tensor:
        """Run the layer with a tap behind it."""
        site = _Site(mode=self, name=name, call=call)
        return _Tap.apply(self._anchor.to(arguments[0]), *in_autocast(*arguments), site)

    def arrive(self, site: "_Site", x: Tensor, weight: Tensor, delta: Tensor) -> None:
        """Add a layer's contribution from its input and the gradient at its output."""
        name, axes = site.name, self._readout.axes[site.name]
        if name in self._readout.repeated:
            gradients = self._gradients(site, x, weight, delta)
            self._sums[name] = gradients + self._sums[name] if name in self._sums else gradients
        elif axes == (output_axis(site.call),) and (geometry := self._gram_geometry(site, x, weight, delta)):
            if site.gram is None:
                site.gram = patch_gram(site.call, x, weight, geometry)
            norms, factor = gram_norms(site.call, site.gram, delta), self._readout.factors.get(name)
            self._rows[name, axes[0]] = norms if factor is None else norms * factor.flatten()
        else:
            self._take(name, self._gradients(site, x, weight, delta))

    def _gram_geometry(self, site: "_Site", x: Tensor, weight: Tensor, delta: Tensor) -> Geometry | None:
        """Return the sizes of a layer's use if Gram matrices are cheaper there, else None."""
        if weight.dtype.itemsize < 4 or (delta.shape[0] != self.samples and isinstance(site.call, Convolution)):
            return None
        geometry = geometry_of(site.call, x, weight, delta)
        return geometry if geometry is not None and geometry.prefers_gram(self._columns) else None

    def _gradients(self, site: "_Site", x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
        """Return per-sample gradients; where a sample consists of several frames, their gradients are added up."""
        if not x.numel():  # an expert without a row
            return weight.new_zeros(self.samples, *weight.shape)
        gradients = site.call.sample_gradients(delta, x, weight)
        gradients = gradients.float() if gradients.dtype.itemsize < 4 else gradients
        return gradients.view(self.samples, -1, *weight.shape).sum(1) if len(gradients) != self.samples else gradients

    def _take(self, name: str, gradients: Tensor) -> None:
        """Square gradients `(N, *weight.shape)` and sum them along every axis of the readout."""
        factor, squares = self._readout.factors.get(name), gradients.square()
        squares = squares if factor is None else squares * factor
        for axis in self._readout.axes[name]:
            others = [a for a in range(1, squares.dim()) if a != axis + 1]
            self._rows[name, axis] = squares.sum(others)


@dataclass(kw_only=True)
class _Site:
    """One tapped use of a weight within a chunk."""

    mode: TapMode
    name: str
    call: LinearMap
    gram: Tensor | None = field(default=None, repr=False)


class _Tap(torch.autograd.Function):
    """A layer whose backward pass reports to its mode and returns the input gradient only.

    The anchor is a zero that requires a gradient: with it the tap of a first layer runs, whose input requires none.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, site: _Site) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x, weight)
        ctx.site = site
        return changeable(site.call.forward(x, weight, bias))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        site: _Site = ctx.site
        site.mode.arrive(site, x, weight, delta)
        gradient = site.call.input_gradient(delta, x, weight) if ctx.needs_input_grad[1] else None
        return None, gradient, None, None, None


def changeable(out: Tensor) -> Tensor:
    """Return a layer's output such that the model may change it in place, which autograd forbids for a view."""
    return out if out._base is None else torch.ops.aten._unsafe_view(out, out.shape)


def in_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> Arguments:
    """Cast a layer's arguments to the number format of autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def output_axis(call: LinearMap) -> int:
    """Return the axis of a weight that counts its outputs."""
    return int(call.transposed)
